"""Benchmarks' own files, damaged or with scores that are none: what is refused, what is missing,
what `show` makes of it."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.cli.common import console
from secondlook.errors import InputError
from secondlook.evals import records, report, runner
from secondlook.evals.benchmark import VALUE_IN_UNIT, Row, ValueRange
from secondlook.evals.geneval import GenEval
from secondlook.evals.records import EvalSettings, score_fault
from secondlook.io import append_rows
from secondlook.mini.evals import audit, judging


def test_no_score_is_outside_its_range():
    metrics = {"psnr": ValueRange(0, 60, True), "clip": ValueRange(0, 100)}
    assert not score_fault({"psnr": None, "clip": 100.00001}, metrics), (
        "undefined is no fault, and rounding neither"
    )
    for score in (
        {"psnr": None},
        {"psnr": 1.0, "clip": None},
        {"psnr": float("inf"), "clip": 1},
        {"psnr": 1, "clip": True},
    ):
        assert score_fault(score, metrics), score
    assert (
        score_fault({"value": float("nan")}, VALUE_IN_UNIT)
        == "value is nan, not a number from 0 to 1"
    )


def test_what_has_no_number_is_missing_and_named(tmp_path, monkeypatch):
    """Scores that are no numbers of their range are missing, each with its reason; a few of many do
    not stop a resumed run."""
    every = [Row(f"{i:05d}", f"a photo of a cup {i}", "all") for i in range(20)]
    settings = EvalSettings("geneval", "mini", 1, 1)
    (tmp_path / "pictures").mkdir()
    record = {"k": 0, "task": "all", "seed": 0, "final": 0, "fresh": []}
    lines = []
    for i, row in enumerate(every):
        name = f"{i:05d}-0-1.png"
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / name)
        shown = [{"picture": name, "yes": True, "p_yes": 0.9, "reason": "…"}]
        lines.append(record | {"row": i, "id": row.id, "prompt": row.prompt, "rounds": shown})
    append_rows(tmp_path / "episodes-000.jsonl", lines)

    def scorer(items):
        return [{"value": float("nan") if row.id == "00003" else 1.0} for row, _ in items]

    runner.score_pictures(scorer, every, settings, tmp_path)
    runner.score_pictures(scorer, every, settings, tmp_path)  # 1 of 1 again, but of 20 in all
    scores = records.read_scores(tmp_path, VALUE_IN_UNIT)
    benchmark, episodes = GenEval(model="mini"), records.read_episodes(tmp_path, every, settings)
    result = report.summarize(
        benchmark, settings, episodes, scores, records.missing_reasons(tmp_path)
    )
    assert result["images"] == 19 and result["missing"] == 1 and len(scores) == 19
    assert result["left_out"][0]["picture"] == "00003-0-1.png" and result["left_out"][0][
        "why"
    ].startswith("value is nan")
    report.write(tmp_path, benchmark, settings, episodes)
    page = (tmp_path / "benchmark.html").read_text()
    assert "1 of 20 samples are left out" in page and "00003-0-1.png" in page
    monkeypatch.setattr(console, "_width", 120)  # whichever test made the console first
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert shown.exit_code == 0 and "GenEval: mini, 20 rows, 1 samples each" in shown.output
    assert "1.000 [1.000, 1.000]" in shown.output and "1 of 20 samples left out" in shown.output


def test_what_there_is_none_of_is_shown_as_none(tmp_path):
    none, some = (dict.fromkeys(("mean", "low", "high"), v) for v in (float("nan"), 0.5))
    images = {"first": some, "final": some, "gain": none}
    judged = {"accuracy": 0.5, "balanced_accuracy": none, "kappa": 0.0, "always_yes_rate": 1.0}
    miniature = {
        "overall": images,
        "tasks": {},
        "binding": {"bound": none, "images": 0},
        "position": {"given_both": none, "chance": 0.25, "images": 0},
        "judge": {"first": judged},
        "redraws": {"fixed": 0.0, "wrong": 0, "broken": 0.5, "right": 2},
    }
    pope = {
        "splits": {"random": {"f1": some, "accuracy": 0.75, "yes_rate": 0.5}},
        "questions": 4,
        "left_out": [],
        "settings": {"model": "mini"},
    }
    for result, said in (
        (
            miniature,
            (
                "redraws: fixed none (wrong: 0), broke 0.500 of 2 right",
                "balanced none, kappa",
                "colours: none (chance",
            ),
        ),
        (
            pope,
            (
                "POPE: mini, 4 questions",
                "0.500 [0.500, 0.500]",
                "0.750",
                "none of the pictures left out",
            ),
        ),
    ):
        (tmp_path / "result.json").write_text(json.dumps(result))
        shown = CliRunner().invoke(app, ["show", str(tmp_path)])
        assert shown.exit_code == 0 and all(words in shown.output for words in said), shown.output
        assert "nan" not in shown.output


def test_records_that_are_damaged_are_as_if_not_there(tmp_path):
    every, settings = (
        [Row("0", "a cup", "all"), Row("1", "a cat", "all")],
        EvalSettings("geneval", "mini", 1, 1),
    )
    shown = [{"picture": "00000-0-1.png", "yes": True, "p_yes": 0.9, "reason": "…"}]
    good = {
        "row": 0,
        "k": 0,
        "id": "0",
        "task": "all",
        "prompt": "a cup",
        "final": 0,
        "rounds": shown,
        "fresh": [],
    }
    bad = [
        good | {"final": 1},
        good | {"rounds": []},
        good | {"row": "0"},
        good | {"rounds": [shown[0] | {"p_yes": float("nan")}]},
        good | {"rounds": [shown[0] | {"yes": "Yes"}]},
        {k: v for k, v in good.items() if k != "prompt"},
    ]
    append_rows(tmp_path / "episodes-000.jsonl", bad)
    with open(tmp_path / "episodes-000.jsonl", "ab") as file:
        file.write(b'{"row": 0, "k"\xff\n')
    assert records.read_episodes(tmp_path, every, settings) == []
    append_rows(tmp_path / "episodes-001.jsonl", [good, good])
    assert records.read_episodes(tmp_path, every, settings) == [good], "once, whoever wrote it"
    assert not records.all_drawn(tmp_path, every, settings)


def test_damaged_results_of_the_miniature_are_refused(tmp_path):
    """What compare, audit, judging and seeds read: a sentence that names the file."""
    import compare
    import seeds

    folder = tmp_path / "geneval"
    folder.mkdir()
    whole = {
        "overall": {},
        "tasks": {},
        "settings": {"model": "mini"},
        "judge": {},
        "redraws": {},
        "binding": {},
        "position": {},
    }
    rounds = [{"yes": True, "p_yes": 0.9, "right": True, "reason": "…", "codes": [1, 2]}]
    episode = {
        "tag": "colors",
        "prompt": "a photo of a red star",
        "seed": 1,
        "final": 0,
        "rounds": rounds,
    }
    for name, value in (("result.json", whole), ("episodes.json", [episode]), ("gallery.json", {})):
        (folder / name).write_text(json.dumps(value))
    assert compare.read("m", tmp_path).episodes and audit.read_codes(folder)[0] == "mini"
    for name, text in (
        ("result.json", "{"),
        ("result.json", "[]"),
        ("result.json", "{}"),
        ("episodes.json", '{"a": 1}'),
        ("episodes.json", json.dumps([episode | {"final": 3}])),
        ("episodes.json", json.dumps([episode | {"rounds": []}])),
        ("episodes.json", json.dumps([{}])),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(text)
        with pytest.raises(InputError, match=name):
            compare.read("m", tmp_path)
        (folder / name).write_text(before)
    for codes, prompt in (
        ([], episode["prompt"]),
        ([-1], episode["prompt"]),
        (["a"], episode["prompt"]),
        ([1], "a photo of rain"),
    ):
        changed = episode | {"prompt": prompt, "rounds": [rounds[0] | {"codes": codes}]}
        (folder / "episodes.json").write_text(json.dumps([changed]))
        with pytest.raises(InputError):
            audit.read_codes(folder)
    said = {"prompt": "a", "right": True, "yes": True, "p_yes": 0.5}
    for change in ({"p_yes": float("nan")}, {"p_yes": "0.5"}, {"yes": "Yes"}, {"other": 1}):
        (tmp_path / "verdicts.json").write_text(json.dumps([said | change]))
        with pytest.raises(InputError, match=r"verdicts\.json"):
            judging.read_verdicts(tmp_path)
    (tmp_path / "result.json").write_text('{"models": ')
    with pytest.raises(InputError, match=r"result\.json"):
        seeds.read(tmp_path)
