"""Files of tensors that nobody vouches for: damage is found, and nothing in them takes time or memory without end."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from fastres import cli, safe_load
from fastres.train import checkpoint


def content() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {f"layer{index}": torch.randn(3, 50) for index in range(4)}


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("value", [0, 255])
def test_overwritten_bytes_are_found_wherever_they_are(size: int, value: int, tmp_path: Path) -> None:
    """Or change nothing, as between the parts of the archive."""
    path, whole = tmp_path / "weights.pt", content()
    torch.save(whole, path)
    good = path.read_bytes()
    found = 0
    for start in range(0, len(good), 41):
        path.write_bytes(good[:start] + bytes([value]) * min(size, len(good) - start) + good[start + size :])
        try:
            loaded = safe_load.load(path)
        except safe_load.UnreadableError:
            found += 1
            continue
        assert loaded.keys() == whole.keys(), start
        assert all(torch.equal(loaded[name], whole[name]) for name in whole), start
    assert found > len(good) // 41 // 3


@pytest.mark.parametrize("zipped", [True, False])
def test_files_without_checksums_are_read(zipped: bool, tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content(), tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    finally:
        torch.serialization.set_crc32_options(before)
    loaded = safe_load.load(tmp_path / "weights.pt")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in content().items())


def contains_itself() -> Any:
    state: dict[str, Any] = {}
    state["state_dict"] = state
    return state


def list_contains_itself() -> Any:
    state: list[Any] = []
    state.append({"state_dict": state})
    return state


def doubles() -> Any:
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    return {"state_dict": value}


def deep() -> Any:
    value: list[Any] = []
    for _ in range(300):
        value = [value]
    return {"state_dict": value}


def expanded() -> Any:
    state = resnet18(num_classes=1).state_dict()
    return state | {"fc.weight": state["fc.weight"].expand(10**9, -1), "fc.bias": state["fc.bias"].expand(10**9)}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (contains_itself, "contains itself"),
        (list_contains_itself, "contains itself"),
        (doubles, "unfolds into more than 10,000,000 values"),
        (deep, "has more than 100 containers within each other"),
        (expanded, "has a tensor of shape [1000000000, 512], 2,048,000,000,000 bytes, in a file of"),
    ],
)
def test_what_has_no_end_is_one_error(
    make: Callable[[], Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(make(), path)
    with pytest.raises(safe_load.UnreadableError) as caught:
        safe_load.load(path)
    assert told in str(caught.value)
    (tmp_path / "x.png").touch()
    for command in (
        ["classify", str(tmp_path / "x.png"), "--weights", str(path), "--model", "resnet18"],
        ["train", "--resume", str(tmp_path)],
    ):
        assert cli.main(command) == 1
        error = capsys.readouterr().err
        assert error.startswith("fastres: error: ")
        assert told in error
        assert error.count("\n") == 1


def test_zeroed_bytes_are_refused_by_both_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the middle of a tensor, where torch.load sees nothing."""
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"model": content()})
    good = path.read_bytes()
    middle = good.index(content()["layer2"].numpy().tobytes()) + 100
    path.write_bytes(good[:middle] + bytes(64) + good[middle + 64 :])
    assert torch.load(path, weights_only=True)["format"] == 1
    (tmp_path / "x.png").touch()
    for command in (
        ["classify", str(tmp_path / "x.png"), "--weights", str(path)],
        ["train", "--resume", str(tmp_path)],
    ):
        assert cli.main(command) == 1
        assert "is damaged: Bad CRC-32 for file" in capsys.readouterr().err


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    """A small file could unfold into a large one."""
    made = io.BytesIO()
    torch.save(content(), made)
    with zipfile.ZipFile(made) as stored, zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for part in stored.infolist():
            packed.writestr(part.filename, stored.read(part), zipfile.ZIP_DEFLATED)
    with pytest.raises(safe_load.UnreadableError, match="its parts are larger than the file"):
        safe_load.load(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model", "\x1b]0;owned\x07", "model: expected resnetD"),
        ("data", "\x1b[2J", "data: expected one of"),
        ("epochs", "many", "epochs: expected int, got str"),
        ("milestones", ["a"], "milestones: expected numbers"),
    ],
)
def test_a_recipe_from_outside_is_checked(
    field: str, value: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastres.train import recipe

    state = dict.fromkeys(checkpoint._KEYS) | {"recipe": recipe().to_dict() | {field: value}}
    checkpoint.save(tmp_path / "checkpoint.pt", {name: part for name, part in state.items() if name != "format"})
    assert cli.main(["train", "--resume", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert told in captured.err
    assert "\x1b" not in captured.out + captured.err
