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
from secondlook.evals.benchmark import VALUE_IN_UNIT, Row, ValueRange, get_benchmark
from secondlook.evals.geneval import GenEval
from secondlook.evals.pie_bench import PIEBench
from secondlook.evals.records import EvalSettings, score_fault
from secondlook.io import append_rows
from secondlook.mini.evals import audit, judging
from secondlook.mini.evals.sampled import redraws_text


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
    assert "1 of 20 samples left out" in page and "00003-0-1.png" in page
    monkeypatch.setattr(console, "_width", 120)  # whichever test made the console first
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert shown.exit_code == 0 and "GenEval: mini, 20 rows, 1 sample each" in shown.output
    assert "[1.000, 1.000]" in shown.output and "1 of 20 samples left out" in shown.output


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
                "2 images were drawn again after a No: no wrong first image was among them, 50.0 % "
                "of 2 right first images ended wrong.",
                "0.500     no data            0.000",
                "balanced accuracy needs right and wrong images",
                "each in its colour  no data  0.50",
            ),
        ),
        (
            pope,
            (
                "POPE: mini, 4 questions",
                "0.500 [0.500, 0.500]",
                "0.750",
            ),
        ),
    ):
        (tmp_path / "result.json").write_text(json.dumps(result))
        shown = CliRunner().invoke(app, ["show", str(tmp_path)])
        assert shown.exit_code == 0 and all(words in shown.output for words in said), shown.output
        assert "nan" not in shown.output and "none" not in shown.output.lower()


def interval_of(mean):
    return {"mean": mean, "low": mean - 0.0123, "high": mean + 0.0123}


def test_what_eval_prints_fits_80_columns(tmp_path, monkeypatch):
    """No interval is broken; an image benchmark's other metrics and what its number is are told."""
    row = {"first": interval_of(27.5), "final": interval_of(28.25), "gain": interval_of(-0.5)}
    judged = {"accuracy": 0.5, "kappa": -0.5, "always_yes_rate": 1.0}
    judged["balanced_accuracy"] = interval_of(0.5)
    tasks = {"background_change": row | {"images": 700}, "ps_human": row | {"images": 1}}
    settings = {"model": "mini", "samples": 1, "judge": "x"}
    public = {"title": "PIE", "rows": 1, "settings": settings, "note": "", "mean_rounds": 1.5}
    public |= {"overall": row | {"images": 1}, "tasks": tasks, "images": 1, "missing": 0}
    public |= {"metrics": {"psnr": row, "clip": row}, "judge": judged}
    miniature = {
        "overall": row,
        "tasks": {"single_object": row | {"images": 320}},
        "binding": {"bound": interval_of(0.5), "images": 320},
        "position": {"given_both": interval_of(0.5), "chance": 0.25, "images": 320},
        "judge": {"every round, greedy": judged},
        "redraws": {"fixed": 0.0, "wrong": 1, "broken": 0.0, "right": 0},
    }
    monkeypatch.setattr(console, "_width", 80)
    for result in (miniature, public | {"number": PIEBench.number}):
        (tmp_path / "result.json").write_text(json.dumps(result))
        shown = CliRunner().invoke(app, ["show", str(tmp_path)])
        assert shown.exit_code == 0, shown.output
        for line in shown.output.splitlines()[2:]:
            assert len(line) <= 80 or line.startswith(("PSNR", "1 image was")), line
            assert line.count("[") == line.count("]"), line
        for interval in ("[27.488, 27.512]", "[-0.512, -0.488]", "0.500 [0.488, 0.512]"):
            assert interval in shown.output
    assert "\nclip " in shown.output and "PSNR in dB" in shown.output
    assert "1 row, 1 sample each" in shown.output and "every sample has its" in shown.output


@pytest.mark.parametrize("name", ["mini-curve", "mini-pie", "mini-judging", "pope"])
def test_lines_of_results_fit_80_columns(name):
    row = {measure: interval_of(-0.5) for measure in ("success", "exact", "psnr")}
    point = {"rounds": 10, "images": 10.5, "final": interval_of(0.5)}
    point["over_best_of_n"] = interval_of(-0.5)
    overall = {"balanced_accuracy": interval_of(0.5), "auroc": interval_of(0.5), "ece": 0.5}
    overall |= {"kappa": -0.5, "verdicts": 12345, "calibrated": {}}
    overall |= {image: row for image in ("first", "final", "gain")}
    split = {"f1": interval_of(0.5), "accuracy": 0.5, "yes_rate": 0.5}
    other = {"other": "x", "sampled_balanced_accuracy": interval_of(-0.5), "auroc": interval_of(0)}
    result = {"curve": [point], "overall": overall, "over": [other], "images_per_second": 1.0}
    result |= {"judge": {"every round": overall}, "splits": {"adversarial": split}, "left_out": []}
    options = {"images": "x"} if name == "mini-judging" else {"model": "mini"}
    lines = get_benchmark(name)(**options).lines(result)
    assert lines and max(map(len, lines)) <= 80, lines


@pytest.mark.parametrize(
    ("redraws", "said"),
    [
        ((0, 0.0, 0, 0.0), "No image was drawn again."),
        (
            (1, 1.0, 0, 0.0),
            "1 image was drawn again after a No: 100.0 % of 1 wrong first image ended right, no "
            "right first image was among them.",
        ),
        (
            (3, 1 / 3, 2, 0.0),
            "5 images were drawn again after a No: 33.3 % of 3 wrong first images ended right, 0.0 "
            "% of 2 right first images ended wrong.",
        ),
    ],
)
def test_redraws_are_told_in_a_sentence(redraws, said):
    names = ("wrong", "fixed", "right", "broken")
    assert redraws_text(dict(zip(names, redraws, strict=True))) == said


def image_benchmark_result(folder, value):
    """What `eval geneval` leaves of one picture that has this score."""
    folder.mkdir(parents=True)
    shown = [{"picture": "0.png", "yes": True, "p_yes": 0.9, "reason": "…"}]
    record = {"row": 0, "k": 0, "task": "all", "id": "0", "prompt": "a cup", "seed": 0, "final": 0}
    append_rows(folder / "episodes-000.jsonl", [record | {"rounds": shown, "fresh": []}])
    append_rows(folder / "scores-000.jsonl", [{"picture": "0.png", "value": value}])
    (folder / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "pictures" / "0.png")
    settings = EvalSettings("geneval", "mini", 1, 1)
    episodes = records.read_records(folder)
    report.write(folder, GenEval(model="mini"), settings, episodes)


def test_a_table_takes_a_benchmarks_folder_or_one_above(tmp_path):
    image_benchmark_result(tmp_path / "a", 0.0)
    image_benchmark_result(tmp_path / "b" / "geneval", 1.0)
    pairs = [f"a={tmp_path}/a", f"b={tmp_path}/b"]
    run = CliRunner().invoke(app, ["eval", "table", *pairs, "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    [table] = json.loads((tmp_path / "out" / "result.json").read_text())["benchmarks"]
    assert [row["name"] for row in table["models"]] == ["a", "b"]
    assert table["differences"][1]["difference"]["mean"] == 1.0
    for settings, said in (
        ({"model": "mini"}, "holds no result.json of an image benchmark, and none of its folders"),
        ({"benchmark": "mine"}, "a result of 'mine', which is no known benchmark; name the file"),
    ):
        (tmp_path / "a" / "result.json").write_text(json.dumps({"settings": settings}))
        run = CliRunner().invoke(app, ["eval", "table", *pairs, "--out", str(tmp_path / "out")])
        assert said in str(run.exception)


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
