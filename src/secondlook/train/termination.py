"""How a run ends before its last step: by its own rules, on input that it cannot use, or because it
was asked to.

torchrun starts ranks that failed again, whatever their exit code, and ends with 1. So a run that
ended itself leaves a note in its folder, by which the ranks that are started again end at once; and
a run that was asked to end, whose ranks all leave together, ends with 0 there. The code that is
meant is written to the file that the environment variable SECONDLOOK_CODE names:
``scripts/ranks.sh`` makes it anew for each start and ends with it, and whatever is started again
beside a code ends at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from secondlook.end_request import EndRequest, EndRequested
from secondlook.errors import InputError, Stopped
from secondlook.io import read_json, write_json
from secondlook.types import WorkerShard

NOTE = "stopped.json"
SAVED = 75
"""The exit code of a run that was asked to end and whose state is saved (EX_TEMPFAIL): the same
command goes on."""


class Saved(Exception):
    """A run was asked to end; its state is saved."""


@contextmanager
def noted(out: Path) -> Iterator[None]:
    """A job in the folder ``out``. Where it stopped itself or could not use its input (Stopped,
    InputError), ranks that torchrun starts again raise the same at once; a new start removes the
    note of an earlier one. Ends the process where the job was asked to end."""
    launch_id = os.environ.get("TORCHELASTIC_RUN_ID")  # None: no torchrun
    note_path = out / NOTE
    is_first_rank = WorkerShard.of_environment().rank == 0
    if note_path.exists():
        note = read_json(note_path, dict)
        if launch_id is not None and note.get("run") == launch_id and _of_this_start(note):
            error_class = InputError if note.get("code") == 2 else Stopped
            raise error_class(note.get("sentence", ""))
        if is_first_rank and not restarts():
            note_path.unlink(missing_ok=True)
            print(
                f"secondlook: {note_path} is removed; why an earlier start ended no longer counts",
                file=sys.stderr,
            )
    try:
        with EndRequest(loading=True):
            yield
    except (Saved, EndRequested) as ending:
        if is_first_rank:
            # the sentence of Saved says it already
            goes_on = "" if isinstance(ending, Saved) else "; the same command goes on"
            print(f"secondlook: {ending}{goes_on}", file=sys.stderr)
        tell(SAVED)
        # torchrun starts ranks that end with another code again
        sys.exit(SAVED if launch_id is None else 0)
    except (Stopped, InputError) as error:
        if launch_id is not None:
            new_note = {
                "sentence": str(error),
                "code": 2 if isinstance(error, InputError) else 1,
                "run": launch_id,
                "time": time.time(),
            }
            with suppress(OSError):  # a note that cannot be written must not hide the error
                write_json(note_path, new_note)
        raise


def restarts() -> int:
    """How often torchrun has started this process's ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _of_this_start(note: dict[str, Any]) -> bool:
    """Whether a note was left since the launcher was started. Of several machines each counts its
    own restarts, so the count alone does not tell: then the note is younger than the launcher's
    file."""
    if restarts():
        return True
    code_file = os.environ.get("SECONDLOOK_CODE")
    if not code_file or not Path(code_file).exists() or told():
        return False
    note_time = note.get("time")  # seconds since 1970, as st_ctime
    launch_time = Path(code_file).stat().st_ctime
    return isinstance(note_time, int | float) and note_time > launch_time


def tell(code: int) -> None:
    """Write down with which exit code the launcher should end, where it asked for it."""
    if "SECONDLOOK_CODE" in os.environ:
        with suppress(OSError):
            Path(os.environ["SECONDLOOK_CODE"]).write_text(f"{code}\n")


def told() -> int | None:
    """The code that an earlier process of this launcher ended with by itself, after which none is
    started again."""
    try:
        return int(Path(os.environ["SECONDLOOK_CODE"]).read_text())
    except (KeyError, OSError, ValueError):
        return None
