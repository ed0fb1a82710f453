"""A benchmark from a file outside the package, run by name through the command line."""

import json
import sys

import pytest

from secondlook import registry
from secondlook.cli import main

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
