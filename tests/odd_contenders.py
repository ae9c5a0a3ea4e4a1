"""Contenders that go wrong, by the names `odd_contenders:...`, and one that does not."""

import os
import time


def right(model, x):
    return lambda: model(x)


def wrong(model, x):
    return lambda: model(x) * 1.001


def opposite(model, x):
    """Wrong by more than any dtype's rounding."""
    return lambda: -model(x)


def raises(model, x):
    raise RuntimeError("cannot build\nsecond line")


def raises_when_timed(model, x):
    """The first forward is the output, warm-up makes three at least: the fifth or a later one fails."""
    calls = iter(range(4))

    def forward():
        next(calls)
        return model(x)

    return forward


def dies(model, x):
    os.write(2, b"last words\n")
    os._exit(3)


def hangs(model, x):
    time.sleep(3600)


def leaves_a_process(model, x):
    if os.fork() == 0:
        time.sleep(3600)
    return lambda: model(x)
