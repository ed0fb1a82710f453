"""GenEval: its rules by hand, and its pipeline from prompts to the page with tiny random models."""

import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from secondlook.cli import app, main
from secondlook.episode import SamplingConfig
from secondlook.errors import InputError
from secondlook.evals import fetch, records, report, runner
from secondlook.evals.benchmark import VALUE_IN_UNIT
from secondlook.evals.geneval import GenEval, GenEvalLong, ObjectColors, verdict
from secondlook.evals.records import EvalSettings
from secondlook.evals.scorers.clip import Clip
from secondlook.evals.scorers.detector import CLASSES, DetectedObject, Detector
from secondlook.types import WorkerShard

ROWS = [
    {
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "prompt": "a photo of a bench",
    },
    {
        "tag": "two_object",
        "include": [{"class": "cat", "count": 1}, {"class": "cup", "count": 1}],
        "prompt": "a photo of a cat and a cup",
    },
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "colors",
        "include": [{"class": "cup", "count": 1, "color": "red"}],
        "prompt": "a photo of a red cup",
    },
    {
        "tag": "position",
        "include": [
            {"class": "cat", "count": 1},
            {"class": "dog", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of a dog left of a cat",
    },
]


def box(name, x, y, confidence=0.95, side=20):
    return DetectedObject(name, (x, y, x + side, y + side), confidence, np.ones((64, 64), bool))


def no_colors(boxes):
    raise AssertionError("no colour was asked for")


def test_rules_of_geneval():
    single, two, counting, colors, position = ROWS
    assert verdict(single, [box("bench", 0, 0, 0.31)], no_colors)[0]
    assert not verdict(single, [box("bench", 0, 0, 0.30)], no_colors)[0], (
        "above the threshold, not at it"
    )
    assert not verdict(two, [box("cat", 0, 0)], no_colors)[0]
    assert verdict(two, [box("cat", 0, 0), box("cup", 9, 9), box("cup", 30, 30)], no_colors)[0], (
        "more are no harm"
    )
    two_clocks = [box("clock", 0, 0), box("clock", 30, 0)]
    assert verdict(counting, [*two_clocks, box("clock", 0, 30, 0.9)], no_colors)[0], (
        "0.9 is not above 0.9"
    )
    right, why = verdict(counting, [*two_clocks, box("clock", 0, 30, 0.91)], no_colors)
    assert not right and why == "expected clock<3, found 3"
    # only the most confident boxes are asked for their colour
    cups = [box("cup", 0, 0, 0.6), box("cup", 30, 0, 0.8)]
    assert verdict(
        colors, cups, lambda boxes: ["red" if b.confidence == 0.8 else "blue" for b in boxes]
    )[0]
    assert not verdict(colors, cups, lambda boxes: ["blue"] * len(boxes))[0]
    cat = box("cat", 40, 0)
    assert verdict(position, [cat, box("dog", 0, 0)], no_colors)[0]
    assert not verdict(position, [cat, box("dog", 42, 0)], no_colors)[0], (
        "too near to be left of it"
    )
    right, why = verdict(position, [box("dog", 0, 0)], no_colors)
    assert not right and "no target" in why, "a clause that failed is no target"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with a small GenEval in place of the real one."""
    path = tmp_path / "data" / "geneval" / "evaluation_metadata.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    name = "geneval/evaluation_metadata.jsonl"
    changed = replace(fetch.FILES[name], sha256=sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(fetch.FILES, name, changed)
    return tmp_path / "data"


@pytest.fixture
def command(models, data, tmp_path):
    """GenEval of `mini` with a detector and a CLIP of random weights, best-of-3 beside it."""
    options = {"model": "mini", "data": data, "out": tmp_path / "out", "fresh": 2, "batch": 16}
    options |= {"detector": models / "detector", "clip": models / "clip"}
    return ["eval", "geneval", *(f"--{name}={value}" for name, value in options.items())]


def test_geneval_from_prompts_to_the_page(command, models, tmp_path, monkeypatch, capsys):
    """20 pictures, scored; then the numbers again from the files alone."""
    out = tmp_path / "out"
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    result = json.loads((out / "result.json").read_text())
    assert result["images"] == 20 and result["rows"] == 5 and result["missing"] == 0
    assert result["settings"]["judge"] == f"{models / 'detector'} and {models / 'clip'}"
    assert [c["rounds"] for c in result["curve"]] == [1, 2, 3] and len(result["best_of_n"]) == 3
    assert (out / "benchmark.html").read_text().count("<figure") >= 5
    assert (out / "curve.png").exists()
    check_numbers(result, out)

    before = (out / "result.json").read_bytes()
    (out / "result.json").unlink()
    monkeypatch.setattr(
        runner, "run_episodes", lambda *_: pytest.fail("what is drawn is not drawn again")
    )
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (out / "result.json").read_bytes() == before
    monkeypatch.setattr("sys.argv", ["secondlook", *command, "--rounds", "2"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "rounds is 2 but" in capsys.readouterr().err


def check_numbers(result, out):
    """The result's means by hand, from what the files say of each picture."""
    scores = {score["picture"]: score for score in records.stored(out, "scores")}
    assert set(scores) == {path.name for path in (out / "pictures").iterdir()}
    assert any(score["objects"] for score in scores.values())
    assert all(score["objects"] or not score["value"] for score in scores.values())
    for name in ("first", "final"):
        values_of_task = {}
        for record in records.stored(out, "episodes"):
            shown = record["rounds"][0 if name == "first" else record["final"]]
            value = scores[shown["picture"]]["value"]
            values_of_task.setdefault(record["task"], []).append(value)
        means = {task: np.mean(values) for task, values in values_of_task.items()}
        assert result["overall"][name]["mean"] == pytest.approx(sum(means.values()) / 5)
        assert {task: result["tasks"][task][name]["mean"] for task in means} == pytest.approx(means)


def test_processes_share_the_jobs_and_resume(data, tmp_path):
    from secondlook.cli.common import load_engine

    engine, every = load_engine("mini"), GenEval(model="mini", data=data).rows()
    sampling = SamplingConfig.of(engine.janus.net.generation_config)
    settings = EvalSettings("geneval", "mini", 2, 1, 0, 0, 1.0)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for out in (alone, shared):
        out.mkdir()
    runner.draw(engine, every, settings, sampling, alone)
    runner.draw(engine, every, settings, sampling, shared, WorkerShard(0, 2))
    assert not records.all_drawn(shared, every, settings)
    with open(shared / "episodes-000.jsonl", "a") as file:
        file.write('{"row": 4, "k"')  # killed while writing
    for rank in (0, 1, 2):  # the rest, by another number of processes
        runner.draw(engine, every, settings, sampling, shared, WorkerShard(rank, 3))
    assert records.all_drawn(shared, every, settings)
    key = lambda r: (r["row"], r["k"])  # noqa: E731
    both = [sorted(records.stored(out, "episodes"), key=key) for out in (alone, shared)]
    assert both[0] == both[1] and len(both[0]) == 10, "each once, and the same whoever draws"

    class Failing:
        def __call__(self, items):
            return ["it failed" if row.task == "colors" else {"value": 1.0} for row, _ in items]

    with pytest.raises(Exception, match=r"2 of 10 pictures got none \(2: it failed\)"):
        runner.score_pictures(Failing(), every, settings, alone)
    result = report.summarize(
        GenEval(model="mini"),
        settings,
        records.stored(alone, "episodes"),
        records.read_scores(alone, VALUE_IN_UNIT),
        records.missing_reasons(alone),
    )
    assert result["missing"] == 2 and result["overall"]["first"]["mean"] == 1.0, "missing, not 0"
    assert result["overall"]["images"] == result["images"] == 8
    assert [(m["id"], m["sample"], m["why"]) for m in result["left_out"]] == [
        ("00003", k, "it failed") for k in (0, 1)
    ]


def test_detector_and_colours(models):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    found = Detector(str(models / "detector"))(image)
    assert found and all(
        f.mask.shape == (48, 48) and f.confidence > 0.3 and f.name in CLASSES for f in found
    )
    x1, y1, x2, y2 = found[0].box
    assert found[0].mask[int(y1) : int(y2), int(x1) : int(x2)].sum() == found[0].mask.sum()
    colors = ObjectColors(Clip(str(models / "clip")))
    assert len(colors(image, found)) == len(found)
    assert colors.word_embeddings(found[0].name).shape == (10, 8)
    with pytest.raises(InputError, match="no Mask2Former"):
        Detector(str(models / "nothing"))


def test_the_real_files_and_objects_laid_out_as_asked(benchmarks):
    rows = GenEval(model="mini", data=benchmarks).rows()
    assert len(rows) == 553 and len(GenEvalLong(model="mini", data=benchmarks).rows()) == 553
    assert {clause["class"] for row in rows for clause in row.facts["include"]} <= set(CLASSES)
    for row in rows:
        objects = laid_out(row.facts)
        assert verdict(row.facts, objects, known_colors)[0], row.prompt
        last_class = row.facts["include"][-1]["class"]
        without_last = [laid for laid in objects if laid.name != last_class]
        assert not verdict(row.facts, without_last, known_colors)[0], row.prompt


def known_colors(objects):
    return [laid.color for laid in objects]


class Laid(DetectedObject):
    """A found object whose colour is known."""

    color = ""


def laid_out(metadata):
    """Objects as a row's metadata ask for them, side by side or where its relation wants them."""
    offsets = {"left of": (-100, 0), "right of": (100, 0), "above": (0, -100), "below": (0, 100)}
    objects = []
    for i, clause in enumerate(metadata["include"]):
        dx, dy = offsets[clause["position"][0]] if "position" in clause else (0, 300 * i)
        for k in range(clause["count"]):
            corners = (dx + 30 * k, dy, dx + 30 * k + 20, dy + 20)
            laid = Laid(clause["class"], corners, 0.95, np.ones((4, 4), bool))
            object.__setattr__(laid, "color", clause.get("color", ""))
            objects.append(laid)
    return objects
