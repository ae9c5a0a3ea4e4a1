"""What a command raises to end with one line on stderr, and how text from outside is made fit for a terminal."""

from __future__ import annotations


class CommandError(Exception):
    """A failure while running, told in the message: exit status 1."""


class UsageError(CommandError):
    """A request that cannot be met as written; the message names the argument, its value and what was expected: 2."""


def printable(text: object) -> str:
    r"""`text` on one line, with what a terminal could take for a command (escapes, bidi marks) as `\x1b` and such."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
