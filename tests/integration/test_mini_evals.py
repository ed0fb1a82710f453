"""The benchmarks' arithmetic, and one small run recomputed from its own JSON."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.episode import SamplingConfig
from secondlook.errors import InputError
from secondlook.evals.intervals import Sample, agreement, bootstrap, by_prompt, mean_of_tasks
from secondlook.mini.evals import geneval
from secondlook.mini.world.language import benchmark


def test_overall_is_the_mean_of_tasks_and_prompts_are_resampled():
    samples = [Sample("a", f"p{i}", float(i < 5)) for i in range(10) for _ in range(4)] + [
        Sample("b", "q", 1.0)
    ]
    found = mean_of_tasks(samples)
    assert found["mean"] == pytest.approx((0.5 + 1.0) / 2)
    # ten prompts whose four images agree: the interval is that of ten draws, not of forty
    assert found["high"] - found["low"] == pytest.approx(3.92 * np.sqrt(0.25 / 10) / 2, rel=0.15)
    assert bootstrap({}, lambda v: 0.0)["mean"] != bootstrap({}, lambda v: 0.0)["mean"], (
        "nothing gives nan, never 0"
    )
    assert len(by_prompt(samples)["a"]) == 10


def test_agreement_sees_through_always_yes():
    truth = [True] * 73 + [False] * 27
    row = agreement(truth, [True] * 100, [str(i) for i in range(100)])
    assert row["accuracy"] == 0.73 and row["always_yes_rate"] == 1.0
    assert row["balanced_accuracy"]["mean"] == 0.5 and row["kappa"] == 0.0


def test_the_world_has_genevals_colours_and_relations():
    """GenEval's own are in evals/; the miniature's must be the same."""
    from secondlook.evals import geneval as published
    from secondlook.mini.world import scene

    assert tuple(scene.COLORS) == published.COLORS
    rng = np.random.default_rng(0)
    for _ in range(300):
        corners, sizes = rng.integers(0, 40, (2, 2)), rng.integers(1, 20, (2, 2))
        a, b = ((*corner, *(corner + size)) for corner, size in zip(corners, sizes, strict=True))
        assert scene.relations(a, b) == published.relations(a, b)


def test_chance_of_a_relation():
    assert 0.2 < geneval.chance_of_relation() < 0.5


def test_a_run_equals_its_recomputation(engine, tmp_path):
    settings = geneval.MiniGenEval(model="tiny", samples=2, rounds=2, rows_per_task=3)
    scored = geneval.draw_and_read(engine, settings, SamplingConfig(guidance=1.0))
    result = geneval.write(tmp_path, scored, settings)
    assert json.loads((tmp_path / "result.json").read_text())["overall"].keys() == {
        "first",
        "final",
        "gain",
    }
    rows = json.loads((tmp_path / "episodes.json").read_text())
    assert len(rows) == 6 * 3 * 2 == result["images"]
    by_task: dict[str, list[bool]] = {}
    for row in rows:
        by_task.setdefault(row["tag"], []).append(row["rounds"][row["final"]]["right"])
    assert result["overall"]["final"]["mean"] == pytest.approx(
        np.mean([np.mean(v) for v in by_task.values()])
    )
    assert len({tuple(r["rounds"][0]["codes"]) for r in rows}) == len(rows), "distinct samples"
    assert "Mini-GenEval" in (tmp_path / "benchmark.html").read_text()


@pytest.mark.parametrize("field", ["samples", "rounds", "rows_per_task"])
def test_settings_are_checked(field):
    with pytest.raises(InputError, match=field):
        geneval.MiniGenEval(**{field: 0})


def trial(right, p_yes, fresh_right, fresh_p_yes):
    """The judge says Yes above a half."""
    from secondlook.evals.best_of_n import JudgedImage, Trial

    row = benchmark()[0]
    rounds = [JudgedImage(p > 0.5, p, r) for p, r in zip(p_yes, right, strict=True)]
    fresh = [JudgedImage(p > 0.5, p, r) for p, r in zip(fresh_p_yes, fresh_right, strict=True)]
    return Trial(row.tag, row.prompt, tuple(rounds), tuple(fresh))


def test_curve_compares_at_equal_cost():
    from secondlook.evals.best_of_n import JudgedImage, curve, final_image

    no, doubtful, yes = (JudgedImage(p > 0.5, p, 0.0) for p in (0.1, 0.4, 0.9))
    assert final_image((no, yes), 1) == (0, 1)
    assert final_image((no, yes), 3) == (1, 2)
    assert final_image((no, doubtful, no), 3) == (1, 3)
    # a redraw helps one of two; the fresh images of both are all wrong but the second of the second
    a = trial([False, True], [0.1, 0.9], [False, False, False], [0.1, 0.2, 0.3])
    b = trial([True], [0.8], [True, False, True], [0.8, 0.9, 0.7])
    one, two, three = curve([a, b], 3, 3)["curve"]
    assert one["images"] == 1 and one["final"]["mean"] == one["best_of_n"]["mean"] == 0.5
    assert two["images"] == three["images"] == 1.5 and two["final"]["mean"] == 1.0
    # at 1.5 images best-of-N takes one or two images, each half of the time: (0.5 + 0) / 2
    assert two["best_of_n"]["mean"] == 0.25 and two["over_best_of_n"]["mean"] == 0.75
    # drawn afresh until Yes, at most twice, the same: the first of both is wrong, and has a No
    assert three["until_yes"]["mean"] == 0.5 and three["until_yes"]["images"] == 1.5


def test_drawing_afresh_until_yes_has_as_many_images():
    """At most three rounds of a good redraw cost less than three fresh images until Yes."""
    from secondlook.evals.best_of_n import curve

    # one redraw mends it; of the fresh images the third one is right, and has the first Yes
    a = trial([False, True], [0.1, 0.9], [False, False, True], [0.1, 0.2, 0.9])
    *_, three = curve([a], 3, 3)["curve"]
    assert three["images"] == 2 and three["final"]["mean"] == 1
    assert three["until_yes"]["images"] == 2 and three["until_yes"]["mean"] == 0
    # a redraw that mends nothing costs three images; until Yes they were two, and it has no more
    b = trial([False] * 3, [0.1] * 3, [False, True, False], [0.1, 0.9, 0.1])
    *_, three = curve([b], 3, 3)["curve"]
    assert three["images"] == 3 and three["until_yes"]["images"] == 2
    assert three["over_until_yes"]["mean"] == -1
    # between two and three images: half of the prompts have the third
    *_, three = curve([a, a], 3, 3)["curve"]
    assert three["until_yes"]["mean"] == 0
    c = trial([False, False, True], [0.1, 0.1, 0.9], [False, False, True], [0.1, 0.2, 0.9])
    *_, three = curve([a, c], 3, 3)["curve"]
    assert three["images"] == 2.5 and three["until_yes"] | {"low": 0, "high": 0} == {
        "mean": 0.5,
        "low": 0,
        "high": 0,
        "images": 2.5,
    }


def test_results_of_two_models_are_compared_pairwise(engine, tmp_path):
    import ablations
    import compare
    from secondlook.mini.evals import curve, judging

    sampling = SamplingConfig(guidance=1.0)
    for name, seed in (("a", 0), ("b", 0), ("other", 5)):
        settings = geneval.MiniGenEval(model=name, samples=1, rounds=2, rows_per_task=2, seed=seed)
        folder = tmp_path / name / "geneval"
        folder.mkdir(parents=True)
        geneval.write(folder, geneval.draw_and_read(engine, settings, sampling), settings)
    few = curve.MiniCurve(model="a", max_rounds=2, samples=1, rows_per_task=2)
    (tmp_path / "a" / "curve").mkdir()
    curve.write(tmp_path / "a" / "curve", curve.run_trials(engine, few, sampling), few)
    for name in ("a", "b"):
        (tmp_path / name / "judging").mkdir()
        same = judging.MiniJudging(model=name, images=tmp_path / "a" / "geneval")
        items = judging.drawn_images(same.images, lambda model: engine)
        verdicts, seconds = judging.judge_images(engine, items)
        drawn = json.loads((tmp_path / "a" / "geneval" / "episodes.json").read_text())
        assert [v.right for v in verdicts] == [r["right"] for e in drawn for r in e["rounds"]]
        judging.write(tmp_path / name / "judging", verdicts, same.settings(), seconds)
    (tmp_path / "out").mkdir()
    read = [compare.read(name, tmp_path / name) for name in ("a", "b", "other")]
    result = compare.write(tmp_path / "out", read[:2])
    [row] = result["differences"]
    assert row["first"] == row["final"] == {"mean": 0.0, "low": 0.0, "high": 0.0}, (
        "the same model and seeds"
    )
    assert "judge_same" in row and read[0].judge_verdicts == read[1].judge_verdicts
    assert "b over a" in (tmp_path / "out" / "report.md").read_text()
    assert '<img src="data:image/png' in (tmp_path / "out" / "report.html").read_text()
    for name, variant in (("a", "sft"), ("b", "task-1")):
        (tmp_path / "variants").mkdir(exist_ok=True)
        (tmp_path / "variants" / variant).symlink_to(tmp_path / name)
    (tmp_path / "report").mkdir()
    [row] = ablations.write(tmp_path / "report", tmp_path / "variants")["claims"]
    assert (row["a"], row["b"], row["agrees"]) == ("sft", "task-1", "not shown"), (
        "the same model: the interval holds zero"
    )
    assert (
        "| +0.000 [+0.000, +0.000] | not shown |"
        in (tmp_path / "report" / "ablations.md").read_text()
    )
    of_a, of_b = (judging.read_verdicts(tmp_path / name / "judging") for name in ("a", "b"))
    assert of_a == of_b
    with pytest.raises(InputError, match="seed"):
        compare.compare([read[0], read[2]])
    with pytest.raises(InputError, match="missing"):
        compare.read("none", tmp_path)


def test_claims_hold_only_when_the_interval_excludes_zero():
    from claims import claims, goals

    def interval(mean):
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}

    def model(gain):
        judge = {"every round": {"balanced_accuracy": interval(0.9)}}
        tasks = {"colors": {"final": interval(0.9)}, "position": {"final": interval(0.5)}}
        overall = {"final": interval(0.86), "gain": interval(gain)}
        return {
            "overall": overall,
            "tasks": tasks,
            "judge": judge,
            "redraws": {"wrong": 9, "fixed": 0.5, "broken_of_all": 0.01},
        }

    gains = {"base": 0.0, "sft": -0.02, "rl": 0.03}
    pairs = [("sft", "base"), ("rl", "base"), ("rl", "sft")]
    measured = {"first": interval(0.02), "final": interval(0.0), "judge": interval(0.1)}
    differences = [{"of": a, "over": b} | measured for a, b in pairs]
    result = {
        "models": {k: model(v) for k, v in gains.items()},
        "differences": differences,
        "curves": {},
        "judges": {},
    }
    held = {row["claim"]: row["holds"] for row in claims(result, 3)}
    assert (
        held["RL lifts the first image over SFT"] == "yes"
        and held["RL lifts the final image over SFT"] == "not shown"
    )
    assert held["after RL, looking again pays (final over first)"] == "yes"
    assert held["after SFT, looking again pays (final over first)"] == "no"
    assert not any("best-of-N" in claim or "further" in claim for claim in held), (
        "nothing is said of what was not measured"
    )
    reached = {row["goal"]: row["reached"] for row in goals(result)}
    assert [goal for goal, done in reached.items() if not done] == [
        g for g in reached if "position" in g or "judge" in g
    ]


def test_audit_sees_a_fooled_reader(tmp_path):
    from secondlook.mini import datasets
    from secondlook.mini.evals import audit
    from secondlook.mini.world.reader import judge

    judged = [
        audit.JudgedTwice(p.spec, p.image, judge(p.spec, p.image), True)
        for p in datasets.pictures(np.random.default_rng(0), 12)
    ]
    judged[3] = judged[3]._replace(second_right=False)
    result = audit.write(tmp_path, judged, n=5)
    assert result["images"] == 12 and result["agreement"]["mean"] == pytest.approx(11 / 12)
    assert result["only_the_reader_says_right"] == 1 and result["only_the_second_says_right"] == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "highest.png",
        "random.png",
        "disagreements.png",
        "result.json",
    }
    with pytest.raises(InputError, match="eval mini-geneval"):
        audit.read_codes(tmp_path / "none")


def test_seeds_stand_side_by_side(tmp_path):
    import seeds

    def report(name, first, rounds=3):
        overall = {what: {"mean": first} for what in ("first", "final", "gain")}
        judge = {"every round": {"balanced_accuracy": {"mean": 0.9}}}
        models = {
            "rl": {
                "overall": overall,
                "judge": judge,
                "redraws": {"fixed": 0.5, "broken_of_all": 0.0},
            }
        }
        folder = tmp_path / name / "report"
        folder.mkdir(parents=True)
        result = {
            "models": models,
            "differences": [],
            "curves": {},
            "judges": {},
            "settings": {"rounds": rounds},
        }
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    reports = [report("seed-0", 0.8), report("seed-1", 0.9)]
    rows = {row["name"]: row for row in seeds.write(tmp_path, reports)}
    assert (
        rows["rl: first image"]["mean"] == pytest.approx(0.85)
        and rows["rl: judge, own images"]["std"] == 0
    )
    assert (
        "| rl: first image | 0.800 | 0.900 | 0.850 | 0.071 |" in (tmp_path / "seeds.md").read_text()
    )
    with pytest.raises(InputError, match="settings"):
        seeds.write(tmp_path, [reports[0], report("seed-2", 0.9, rounds=2)])
    with pytest.raises(InputError, match="two or more"):
        seeds.write(tmp_path, reports[:1])
    with pytest.raises(InputError, match=r"paper/compare\.py"):
        seeds.read(tmp_path / "none")


def test_the_page_shows_what_is_wrong_and_was_judged_yes(tmp_path):
    """Every kind of episode has its place on the page; a kind without one has no heading, and 0 of
    0 is no share."""
    from PIL import Image

    from secondlook.mini.evals.geneval import MiniGenEval, ReadEpisode, gallery, write
    from secondlook.mini.world.language import parse
    from secondlook.mini.world.reader import read
    from secondlook.types import Episode, Prompt, Round

    image = Image.new("RGB", (48, 48), (153,) * 3)

    def scored(*rounds):
        drawn = tuple(Round(image, (0,), yes, 0.9 if yes else 0.1, "…") for yes, _ in rounds)
        episode = Episode(Prompt("a photo of a key"), 0, drawn, ())
        return ReadEpisode(
            parse("a photo of a key"),
            episode,
            (read(image),) * len(rounds),
            tuple(right for _, right in rounds),
        )

    some = [scored((True, False)), scored((True, True)), scored((True, True))]
    assert {name: len(strips) for name, strips in gallery(some).items()} == {
        "Wrong, and judged Yes at once": 1,
        "Right at once": 2,
    }
    write(tmp_path, some, MiniGenEval())
    page = (tmp_path / "benchmark.html").read_text()
    assert (
        "Wrong, and judged Yes at once" in page and "Still wrong" not in page and "nan" not in page
    )
    assert "No image was drawn again." in page
    assert list(gallery([scored((False, False))])) == ["Still wrong"]


def test_compound_prompts_from_drawing_to_the_page(tmp_path):
    """Of the shipped base, which was never asked for so much: its numbers add up."""
    from secondlook.cli.common import load_engine
    from secondlook.mini.evals import geneval_plus
    from secondlook.models.shipped import locate

    settings = geneval_plus.MiniGenEvalPlus(model="mini", samples=1, rounds=2, rows_per_task=2)
    engine = load_engine(locate("mini"))
    read_trials = geneval_plus.draw_and_read(engine, settings, SamplingConfig(guidance=1.0))
    result = geneval_plus.write(tmp_path, read_trials, settings)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["images"] == 8 and set(stored["tasks"]) == {t.compound.task for t in read_trials}
    rows = json.loads((tmp_path / "episodes.json").read_text())
    for row in rows:
        assert all(r["right"] == all(r["held"]) or not r["right"] for r in row["rounds"])
        assert all(len(r["held"]) >= 3 for r in row["rounds"])
    first = np.mean([row["rounds"][0]["right"] for row in rows])
    final = np.mean([row["rounds"][row["final"]]["right"] for row in rows])
    assert result["headline"]["gain"]["mean"] == pytest.approx(final - first)
    graded = np.mean([np.mean(row["rounds"][0]["held"]) for row in rows])
    assert result["overall"]["graded_first"]["mean"] == pytest.approx(graded)
    assert "Does a redraw learn" in (tmp_path / "benchmark.html").read_text()

    # the folder names its benchmark, which says how its result is shown
    settings.begin("mini-geneval-plus", tmp_path)
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert shown.exit_code == 0 and "over_until_yes: " in shown.output


def test_repairs_from_drawing_to_the_page(tmp_path):
    """Of the shipped base, which knows no repairs: its numbers add up, and each way is another."""
    options = [
        "--rows-per-task",
        "3",
        "--samples",
        "1",
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
    ]
    command = ["eval", "mini-repairs", "--model", "mini", *map(str, options)]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert "over_none: " in run.output and "counterfactual: " in run.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    ways = result["ways"]
    assert result["wrong"] > 5 and result["wrong"] + result["right"] <= 12
    for name, other in (("over_none", "none"), ("over_afresh", "afresh"), ("over_blank", "blank")):
        difference = ways["true"]["repaired"]["mean"] - ways[other]["repaired"]["mean"]
        assert result["headline"][name]["mean"] == pytest.approx(difference)
    assert ways["afresh"]["copied"]["mean"] == 0
    by_faults = result["by_faults"]
    assert min(map(int, by_faults)) >= 1 and len(by_faults) > 1
    page = (tmp_path / "out" / "benchmark.html").read_text()
    assert "What a redraw makes of picture and words" in page and "Changed, not right" in page
