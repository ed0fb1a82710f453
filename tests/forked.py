"""Commands, scripts and pages in processes of their own, forked from one that has imported
everything once: importing torch and transformers takes longer than most of what is tested."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait do not fight for a core
os.environ["COLUMNS"] = "200"  # of tables; read where a console is made, that is on import
PRELOADED = [
    "matplotlib.pyplot",
    "secondlook.api",
    "secondlook.cli",
    "secondlook.data.generate",
    "secondlook.mini.evals.geneval",
    "secondlook.mini.plugin",
    "secondlook.train.rl.loop",
    "secondlook.train.sft",
    "torch.utils.tensorboard",
]


@dataclass(frozen=True)
class Finished:
    """What became of a process."""

    returncode: int
    stdout: str
    stderr: str


def run_forked(
    function: Callable[..., Any], *args, output: Path, folder: Path | None = None
) -> Finished:
    """Call a module's function in a new process, in ``folder`` (None: the current one). What it
    prints goes to the files ``stdout`` and ``stderr`` of ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    where = folder or Path.cwd()
    process = context.Process(target=_call, args=(function, args, output, where))
    process.start()
    process.join(timeout=300)
    if process.is_alive():
        process.kill()
        process.join()
    printed = [(output / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    assert process.exitcode is not None
    return Finished(process.exitcode, *printed)


def _call(function: Callable[..., Any], args: tuple, output: Path, folder: Path) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
    os.chdir(folder)
    function(*args)


def run_command(arguments: list[str]) -> None:
    """The command ``secondlook`` with its arguments; ends with its exit code."""
    from secondlook.cli import main

    sys.argv = ["secondlook", *arguments]
    main()


def run_script(path: Path, arguments: list[str]) -> None:
    """A script as ``python path arguments`` runs it; ends with its exit code."""
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
