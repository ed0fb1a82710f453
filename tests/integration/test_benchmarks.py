"""The timing scripts run at any size, and their ways draw the same codes. What they time is never
asserted."""

import json
from pathlib import Path

import transformers

from forked import run_forked, run_script

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
TINY = ["--layers", "2", "--width", "64", "--codes", "16"]


def run(script, tmp_path, *more):
    out = tmp_path / "result.json"
    arguments = [*TINY, *more, "--json", str(out)]
    done = run_forked(run_script, SCRIPTS / script, arguments, output=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_three_ways_to_draw_draw_the_same(tmp_path):
    # transformers 5.17 cannot generate images: its _prepare_static_cache call lacks an argument
    ways = (
        ["original", "ours"]
        if transformers.__version__.startswith("5.17")
        else ["original", "transformers", "ours"]
    )
    result = run("decode.py", tmp_path, "--batch", "1", "3", "--repeat", "2", "--ways", *ways)
    assert [row["batch"] for row in result["rows"]] == [1, 3]
    for row in result["rows"]:
        assert all(
            row[f"equal_{way}"] == 1 and row[f"vs_{way}"] > 0 for way in ways if way != "ours"
        )
        assert row["of_bound"] > 0 and set(row["images_per_second"]) == set(
            row["first_image"]
        ) == set(ways)


def test_introspection_both_ways(tmp_path):
    result = run("episode.py", tmp_path, "--episodes", "6", "--rounds", "3")
    assert result["images"] < result["images_public"] == 18 and 0 < result["yes_rate"] < 1
    assert result["vs_public"] > 0


def test_updates_both_ways(tmp_path):
    result = run("update.py", tmp_path, "--turns", "2", "--vocabulary", "1024", "--repeat", "1")
    for kind in ("image", "text"):
        row = result[kind]
        assert row["speedup"] > 0 and row["memory_ratio"] > 0
        assert row["largest_logprob_difference"] < 1e-3 and row["gradient_difference"] < 1e-5
