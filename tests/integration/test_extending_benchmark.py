"""A benchmark from a file outside the package, run by name through the command line."""

import json
import re
import sys

import pytest
from PIL import Image

from secondlook import registry
from secondlook.cli import main
from secondlook.errors import InputError
from secondlook.evals import runner
from secondlook.evals.benchmark import VALUE_IN_UNIT, Row

PLUGIN = '''
from __future__ import annotations

import numpy as np
from pydantic import Field

from secondlook.evals.benchmark import ImageBenchmark, Row
from secondlook.registry import register_benchmark


@register_benchmark("red-pictures")
class RedPictures(ImageBenchmark):
    """Are pictures of red things red?"""

    title = "Red pictures"
    default_samples = 2

    least: float = Field(0.01, ge=0, le=1, description="Share of red pixels from which on.")

    def rows(self):
        texts = ("a photo of a red star", "a photo of a blue cat")
        return [Row(str(i), text, text.split()[-1]) for i, text in enumerate(texts)]

    def scorer(self, device):
        return self.score

    def score(self, items):
        scores = []
        for row, image in items:
            red, green, blue = np.asarray(image.convert("RGB"), int).transpose(2, 0, 1)
            share = float(((red > 150) & (green < 100) & (blue < 100)).mean())
            scores.append({"value": float((share > self.least) == ("red" in row.prompt))})
        return scores
'''


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "red.py"
    path.write_text(PLUGIN)
    yield path
    registry.benchmarks._registered.pop("red-pictures", None)


def ended(monkeypatch, *args) -> int:
    """The exit code of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["secondlook", *map(str, args)])
    with pytest.raises(SystemExit) as done:
        main()
    return done.value.code or 0


def test_a_benchmark_from_a_file_outside(plugin, tmp_path, monkeypatch, capsys):
    assert ended(monkeypatch, "eval", "red-pictures", "--model", "mini") == 2
    assert "'red-pictures' is unknown" in capsys.readouterr().err

    command = ["--plugin", plugin, "eval", "red-pictures", "--model", "mini", "--rounds", "1"]
    out = tmp_path / "out"
    assert ended(monkeypatch, *command, "--least", "0.02", "--out", out) == 0
    result = json.loads((out / "result.json").read_text())
    assert set(result["tasks"]) == {"star", "cat"} and result["images"] == 4
    assert result["overall"]["first"]["mean"] > 0.5 and "judge" in result
    assert result["settings"]["options"] == {"least": 0.02}
    assert (out / "benchmark.html").read_text().count("<figure") == 2
    capsys.readouterr()

    assert ended(monkeypatch, *command, "--out", out) == 2, "another setting in the folder"
    assert "options" in capsys.readouterr().err
    assert ended(monkeypatch, *command, "--least", "2", "--out", out) == 2
    assert "least: 2.0 is wrong" in capsys.readouterr().err
    assert ended(monkeypatch, "--plugin", plugin, "eval", "list") == 0
    assert "Are pictures of red things red?" in capsys.readouterr().out


def test_something_else_than_a_benchmark_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "wrong.py"
    path.write_text(
        "from secondlook.registry import register_benchmark\n"
        "@register_benchmark('wrong')\n"
        "def measure(model):\n"
        "    return 1.0\n"
    )
    try:
        assert ended(monkeypatch, "--plugin", path, "eval", "wrong") == 2
        assert "no subclass of secondlook.evals.benchmark.Benchmark" in capsys.readouterr().err
    finally:
        registry.benchmarks._registered.pop("wrong", None)


WRONG_CLASSES = {
    'metrics = {"half": (0, 1)}': r"metrics = {'half': \(0, 1\)} is wrong at 'half'; give a range",
    'metrics = {"half": ValueRange(1, 0)}': "is wrong at 'half'; give a range",
    'metrics = ("half",)': r"metrics = \('half',\) is wrong; give a dictionary of names and ranges",
    "metrics = {}": "metrics = {} is wrong",
    'metrics = {"picture": ValueRange()}': "a text other than 'picture'",
    'metrics: dict = {"half": ValueRange()}': "metrics with a type is an option of the command",
    'title = ""': "title = '' is wrong; give a text for people",
    "del title": "has no title; give a text for people",
    'suite = "auto"': "suite = 'auto' is wrong; give one word that `eval all --suite` takes",
    "suite = 3": "suite = 3 is wrong",
    'counted_tasks = "star"': "counted_tasks = 'star' is wrong; give a tuple of tasks' names",
    'counted_tasks = ("dog",)': "counted_tasks names 'dog', of which there is no row; rows are of",
    'mean_over = "rows"': 'mean_over = \'rows\' is wrong; give "tasks" or "images"',
    "default_samples = 0": "default_samples = 0 is wrong; give a whole number from 1 to 1000",
    'argument = "folder"': "argument = 'folder' is wrong; it has no field of this name",
    'files = ("mine.csv",)': "files names 'mine.csv', which is not in evals.fetch.FILES",
    "edits = True": "row 0 edits nothing; give its Row a source",
    "device: str = 'cpu'": "every benchmark has an option device",
    "def rows(self): return [('0', 'a cup', 'a')]": r"row 0 is \('0', 'a cup', 'a'\); give a",
    "def rows(self): return None": r"rows\(\) returned None; return a list of Row",
    "scorer = ImageBenchmark.scorer": "lacks scorer; define what it lacks",
}


@pytest.mark.filterwarnings("ignore:Field name")  # pydantic says it too
@pytest.mark.parametrize("line", WRONG_CLASSES)
def test_a_class_that_is_no_benchmark_is_refused_before_drawing(
    line, tmp_path, monkeypatch, capsys
):
    name = "half-benchmark"
    text = PLUGIN.replace("red-pictures", name).replace("Row\n", "Row, ValueRange\n")
    if line == "del title":
        text = text.replace('    title = "Red pictures"\n', "")
    elif line.startswith("title"):
        text = text.replace('title = "Red pictures"', line)
    else:
        text += f"\n    {line}\n"
    path = tmp_path / "wrong.py"
    path.write_text(text)
    monkeypatch.setattr("secondlook.cli.evals.load_engine", lambda *_, **__: pytest.fail("loaded"))
    try:
        command = ["--plugin", path, "eval", name, "--model", "mini", "--out", tmp_path / "out"]
        assert ended(monkeypatch, *command) == 2
    finally:
        registry.benchmarks._registered.pop(name, None)
    said = capsys.readouterr().err
    assert said.startswith("secondlook: benchmarks: ") and said.count("\n") == 1
    assert re.search(WRONG_CLASSES[line], said), said
    assert not (tmp_path / "out").exists()


def test_what_a_scorer_gives_is_checked(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "0.png")
    rows, batch = [Row("0", "a cup", "all")], [(0, "0.png")]
    _, [missing] = runner._score_batch(lambda _: [0.5], rows, tmp_path, batch, VALUE_IN_UNIT)
    assert missing["why"] == "the scorer gave 0.5, neither metrics nor a sentence"
    with pytest.raises(InputError, match="scorer: it gave 0 scores for 1 pictures"):
        runner._score_batch(lambda _: [], rows, tmp_path, batch, VALUE_IN_UNIT)


def test_benchmarks_of_others_are_a_suite_of_their_own(plugin, monkeypatch, capsys):
    assert ended(monkeypatch, "--plugin", plugin, "eval", "list") == 0
    suites = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    assert suites["red-pictures"] == "own" and suites["geneval"] == "public"
    assert suites["name"] == "suite", "the columns are named"
