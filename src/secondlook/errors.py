"""The two errors that a user meets, and what a user is told while a job goes on. Each message is
one sentence."""

import sys


class InputError(ValueError):
    """What a user gave cannot be used. The message names the field, the value and what would be
    right; the command line ends with exit code 2."""


class Stopped(RuntimeError):
    """A run ended itself because going on would do harm. The message names what was seen and what
    is allowed; the command line ends with exit code 1."""


def tell_user(sentence: str) -> None:
    """Print to stderr what a user should know, though the job goes on."""
    print(f"secondlook: {sentence}", file=sys.stderr, flush=True)
