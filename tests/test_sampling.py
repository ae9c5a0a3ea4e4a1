"""What a sample of a tensor's bytes meets for certain."""

from __future__ import annotations

from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastres.sampling import Sample

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 7), st.integers(1, 7))


@given(SHAPES, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), st.booleans(), st.randoms())
@settings(max_examples=150, deadline=None)
def test_the_sample_meets_every_filter_and_every_position(
    shape: tuple[int, int, int, int], dtype: torch.dtype, channels_last: bool, random: Random
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weight = torch.ones(shape, dtype=dtype).to(memory_format=layout)
    sample = Sample([weight])
    assert sample.same()
    filter, *position = (random.randrange(size) for size in shape)
    weight[filter] = 2
    assert not sample.same()
    weight[filter] = 1
    assert sample.same()
    channel, row, column = position
    weight[:, channel, row, column] = 2
    assert not sample.same()


def test_the_sample_of_a_large_weight_is_what_its_page_says() -> None:
    assert Sample([torch.empty(512, 512, 3, 3)]).nbytes == 8224 * 4


@given(st.integers(1, 300), st.integers(0, 299))
@settings(max_examples=50, deadline=None)
def test_vectors_are_compared_in_full(size: int, index: int) -> None:
    vector, count = torch.zeros(size), torch.tensor(0)
    sample = Sample([vector, count])
    vector[index % size] = 1
    assert not sample.same()
    vector[index % size] = 0
    assert sample.same()
    count += 1
    assert not sample.same()
