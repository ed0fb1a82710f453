"""Every code block of the README, the documentation, the examples and the notebook runs, on the
miniature.

A page's blocks run in order, in one process and an empty folder: ``python`` blocks, and of ``bash``
and ``console`` blocks the lines that begin with ``secondlook`` or ``printf``. A block whose first
line is a comment with a file's name alone (``# my_reward.py``) is written to that file instead.
``sh`` marks what is only shown: set-up, scripts, servers. A block whose first line is
``# not run in the tests: REASON`` needs a GPU, a hub or a server.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
import traceback
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from forked import run_forked
from secondlook.evals import intervals
from secondlook.mini.world.language import parse
from secondlook.mini.world.scene import COLORS, OBJECTS

ROOT = Path(__file__).parents[2]
RUN = ("python", "bash", "console")
NOT_RUN = "# not run in the tests:"
FILE = re.compile(r"# ([\w-]+\.(?:py|toml|txt|jsonl))\n")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`]+)`")
NOT_PAGES = ("LOG.md", "reference/", "results/")  # what was measured, and what docstrings say


def pages() -> list[Path]:
    docs = ROOT / "docs"
    written = [p for p in sorted(docs.rglob("*.md")) if not p.name.startswith("_")]
    shown = [p for p in written if not str(p.relative_to(docs)).startswith(NOT_PAGES)]
    examples = sorted((ROOT / "examples").glob("*.py")) + sorted(
        (ROOT / "examples").glob("*.ipynb")
    )
    return [ROOT / "README.md", *shown, *examples]


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """(language, text) of what runs: a page's blocks, a whole script, a notebook's cells."""
    if page.suffix == ".py":
        return [("python", page.read_text())]
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return [("python", "".join(c["source"])) for c in cells if c["cell_type"] == "code"]
    blocks = []
    for kind, text in BLOCK.findall(page.read_text()):
        if FILE.match(text):
            blocks.append(("file", text))
        elif kind in RUN and not text.startswith(NOT_RUN):
            blocks.append((kind, text))
    return blocks


PAGES = [page for page in pages() if blocks_of(page)]


def run_command(line: str) -> None:
    """A line of a page: ``secondlook …`` in this process, ``printf`` by the shell."""
    import shlex

    from secondlook.cli import main

    if not line.startswith("secondlook "):
        subprocess.run(line, shell=True, check=True)
        return
    sys.argv = shlex.split(line, comments=True)
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"exit code {ended.code}: {line}") from ended


def run_page(page: Path) -> None:
    """All blocks of a page, in this process."""
    intervals.RESAMPLES = 100  # as everywhere in these tests, where intervals are not the point
    names = {"__name__": "__main__", "__file__": str(page)}
    sys.argv = [str(page)]
    try:
        for kind, text in blocks_of(page):
            if kind == "file":
                Path(FILE.match(text)[1]).write_text(text)
            elif kind == "python":
                exec(compile(text, f"{page.name}: {text.splitlines()[0]}", "exec"), names)
            else:
                joined = text.replace("\\\n", " ")
                for line in joined.splitlines():
                    line = line.removeprefix("$ ")
                    if line.startswith(("secondlook ", "printf ")):
                        run_command(line)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    done = run_forked(run_page, page, output=tmp_path, folder=folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_what_is_not_run_says_why():
    for page in pages():
        blocks = BLOCK.findall(page.read_text()) if page.suffix == ".md" else []
        for kind, text in blocks:
            where = f"{page.relative_to(ROOT)}: {text.splitlines()[0] if text else ''}"
            assert kind in (*RUN, "sh", "toml", "json", "text"), f"{kind!r} in {where}"
            if text.startswith(NOT_RUN):
                assert re.search("GPU|hub|server", text.splitlines()[0]), where
            if kind in ("bash", "console"):
                assert re.search(r"^(\$ )?secondlook ", text, re.MULTILINE), (
                    f"nothing runs: {where}"
                )


def named_rows(page: Path) -> list[tuple[str, list[str]]]:
    """(file, names) of table rows with a file below src/secondlook and, beside it, names in it."""
    rows = []
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for where, names in pairwise(cells):
            if re.fullmatch(r"`[\w/]+\.(py|toml)`", where):
                rows.append((where.strip("`"), CODE_SPAN.findall(names)))
    return rows


@pytest.mark.parametrize("page", ["architecture.md", "paper.md"])
def test_files_and_names_are_where_the_page_says(page):
    rows = [(file, names) for file, names in named_rows(ROOT / "docs" / page) if names]
    assert len(rows) >= 12
    for file, names in rows:
        text = (ROOT / "src" / "secondlook" / file).read_text()
        for name in names:
            if file.endswith(".toml"):
                assert re.search(rf"^{name}\b", text, re.MULTILINE), f"{name} is not set in {file}"
            else:
                assert name in defined(text), f"{name} is not defined in {file}"


PATH = re.compile(r"(?:\w+/)+\w+\.(?:py|toml)")


@pytest.mark.parametrize("page", ["architecture.md", "paper.md"])
def test_files_that_the_page_mentions_are_there(page):
    for span in CODE_SPAN.findall((ROOT / "docs" / page).read_text()):
        if PATH.fullmatch(span):
            places = [ROOT / "src" / "secondlook" / span, ROOT / span]
            assert any(place.exists() for place in places), f"{span} in {page}"


def test_numbered_lists_are_shown_with_the_numbers_that_are_written():
    """Markdown counts on from a list's first number, whatever the others say."""
    for page in [p for p in pages() if p.suffix == ".md"]:
        last_number = 0
        for line in page.read_text().splitlines():
            item = re.match(r"(\d+)\. ", line)
            if item and last_number:
                assert int(item[1]) == last_number + 1, f"{page.relative_to(ROOT)}: {line}"
            if item:
                last_number = int(item[1])
            elif line and not line.startswith(" "):  # the list has ended
                last_number = 0


def defined(text: str) -> set[str]:
    """Names that a module gives to something: classes, functions, variables."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_every_file_that_the_pages_link_to_is_there():
    for page in [p for p in pages() if p.suffix == ".md"]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{target} in {page.relative_to(ROOT)}"


def test_the_miniature_s_page_lists_every_word():
    page = (ROOT / "docs" / "miniature.md").read_text()
    assert f"| objects | {', '.join(OBJECTS)} |" in page
    assert f"| colours | {', '.join(COLORS)} |" in page
    for prompt in re.findall(r'"(a photo of (?!a dog)[^"]+)"', page):
        assert parse(prompt).prompt == prompt


def judge_folder(pictures: str) -> None:
    sys.argv = ["judge_folder.py", pictures, "a photo of a red star"]
    runpy.run_path(str(ROOT / "examples" / "judge_folder.py"), run_name="__main__")


def test_the_example_judges_pictures_with_any_extension(tmp_path):
    pictures, output = tmp_path / "pictures", tmp_path / "output"
    pictures.mkdir()
    output.mkdir()
    done = run_forked(judge_folder, str(pictures), output=output)
    assert done.returncode != 0 and "holds no picture" in done.stdout + done.stderr
    for name in ("a.PNG", "b.jpeg"):
        Image.new("RGB", (48, 48)).save(pictures / name)
    done = run_forked(judge_folder, str(pictures), output=output)
    assert done.returncode == 0 and "of 2 match" in done.stdout


def test_the_readme_stays_a_page():
    assert (ROOT / "README.md").stat().st_size <= 10_000


def test_examples_are_short():
    for example in (ROOT / "examples").glob("*.py"):
        assert len(example.read_text().splitlines()) < 60, example.name
