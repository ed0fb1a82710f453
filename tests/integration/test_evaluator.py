"""The model as evaluator: pairs of every form, verdicts that survive an interruption, and how far
the judge may be believed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.data.labelled_images import read_pairs
from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.evals import evaluator
from secondlook.mini import datasets
from secondlook.mini.evals import judge_measures, judging
from secondlook.mini.evals.judge_measures import ImageVerdict
from secondlook.mini.world.language import parse
from secondlook.mini.world.reader import judge
from secondlook.mini.world.reasons import holds_true
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate
from secondlook.types import ImageInput

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture(scope="module")
def mini():
    return Engine(Janus.load(locate("mini")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Right pictures and near misses of the world, as files and as rows."""
    out = tmp_path_factory.mktemp("pairs")
    rng, rows = np.random.default_rng(5), []
    for i, p in enumerate(datasets.pictures(rng, 12)):
        for good, image in ((True, p.image), (False, datasets.wrong(rng, p, 1)[0][0])):
            name = f"{i}-{'good' if good else 'bad'}.png"
            image.save(out / name)
            rows.append({"image": name, "prompt": p.spec.prompt, "good": good})
    (out / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return out


def test_pairs_of_every_form(folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = read_pairs(folder / "pairs.jsonl")
    rows = [
        {"image": {"bytes": (folder / p.name).read_bytes()}, "prompt": p.prompt, "correct": p.good}
        for p in lines
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    stored = read_pairs(tmp_path / "pairs.parquet")
    assert [(p.prompt, p.good) for p in stored] == [(p.prompt, p.good) for p in lines]
    assert all(np.array_equal(a.open(), b.open()) for a, b in zip(stored, lines, strict=True))
    assert [p.prompt for p in read_pairs(folder, "a cat")] == ["a cat"] * 24
    assert read_pairs(folder / "0-good.png", "a cat")[0].good is None
    (tmp_path / "bad.jsonl").write_text('{"image": "x.png"}\n')
    for path, prompt, word in (
        (folder, "", "prompt: it is missing"),
        (tmp_path / "bad.jsonl", "", "prompt: it is missing"),
        (tmp_path / "none.jsonl", "", "not a file"),
        (tmp_path, "a cat", "holds no picture"),
    ):
        with pytest.raises(InputError, match=word):
            read_pairs(path, prompt)


def test_an_interrupted_evaluation_goes_on(mini, folder, tmp_path, monkeypatch):
    pairs, settings = read_pairs(folder / "pairs.jsonl"), evaluator.Settings("mini", "pairs")
    monkeypatch.setattr(evaluator, "PICTURES_A_WRITE", 10)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    assert list(evaluator.write(mini, pairs, settings, tmp_path / "whole")) == [0, 10, 20, 24]
    for n in evaluator.write(mini, pairs, settings, tmp_path / "cut"):
        if n == 10:
            break
    part = tmp_path / "cut" / "verdicts.jsonl.part"
    part.write_text(part.read_text() + '{"image": "half')
    with pytest.raises(InputError, match="other settings"):
        next(
            evaluator.write(mini, pairs, evaluator.Settings("mini", "pairs", 0.9), tmp_path / "cut")
        )
    assert list(evaluator.write(mini, pairs, settings, tmp_path / "cut")) == [10, 20, 24]
    whole, cut = ((tmp_path / n / "verdicts.jsonl").read_text() for n in ("whole", "cut"))
    assert whole == cut and not part.exists()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert sum(r["yes"] == r["good"] for r in rows) >= 18 and all(r["reason"] for r in rows)
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["pairs"] == 24


def test_from_the_command_line(folder, tmp_path):
    run = CliRunner().invoke(
        app, ["judge", str(folder / "pairs.jsonl"), "--out", str(tmp_path / "a")]
    )
    assert run.exit_code == 0 and "images/s" in run.output, run.output
    run = CliRunner().invoke(
        app, ["eval", "mini-judging", str(folder / "pairs.jsonl"), "--out", str(tmp_path / "b")]
    )
    assert run.exit_code == 0 and "AUROC" in run.output, run.output
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert {"balanced_accuracy", "auroc", "ece", "kappa", "recall_of_no"} <= result[
        "overall"
    ].keys()
    assert (tmp_path / "b" / "reliability.png").exists() and result["images_per_second"] > 0
    used = CliRunner().invoke(
        app,
        [
            "judge",
            str(folder / "pairs.jsonl"),
            "--calibration",
            str(tmp_path / "b"),
            "--out",
            str(tmp_path / "c"),
        ],
    )
    cut = result["overall"]["calibrated"]["threshold"]
    assert used.exit_code == 0 and f"p(yes) above {cut:.3f}" in used.output


def verdict(right, p, prompt) -> ImageVerdict:
    return ImageVerdict(prompt, right, p > 0.5, p)


def test_measures_by_hand():
    some = [
        verdict(True, 0.9, "a"),
        verdict(True, 0.7, "b"),
        verdict(False, 0.72, "c"),
        verdict(False, 0.1, "d"),
        verdict(True, 0.2, "e"),
    ]
    assert judge_measures.auroc(some)["mean"] == pytest.approx(
        roc_auc_score([1, 1, 0, 0, 1], [0.9, 0.7, 0.72, 0.1, 0.2])
    )
    bins = judge_measures.reliability(some)
    assert [b["images"] for b in bins] == [1, 1, 2, 1] and bins[2]["right"] == 0.5
    wanted = (abs(0.1 - 0) + abs(0.2 - 1) + 2 * abs(0.71 - 0.5) + abs(0.9 - 1)) / 5
    assert judge_measures.ece(bins) == pytest.approx(wanted)
    result = judge_measures.overall(some)
    assert (
        result["recall_of_no"] == 0.5
        and result["precision_of_no"] == 0.5
        and result["always_yes_would_agree"] == 0.6
    )
    biased = [verdict(i % 2 == 0, 0.6 + 0.3 * (i % 2 == 0), f"prompt {i}") for i in range(40)]
    found = judge_measures.calibrated(biased)
    assert (
        0.6 < found["threshold"] < 0.9
        and found["balanced_accuracy"]["mean"] == 1.0
        and found["at_half"]["mean"] == 0.5
    )


def test_a_reason_names_what_truly_failed():
    rng = np.random.default_rng(0)
    for p in datasets.pictures(rng, 30):
        assert not holds_true(p.spec, np.asarray(p.image), "there is no cat")
        for image, answer in datasets.wrong(rng, p, 3):
            assert holds_true(p.spec, np.asarray(image), answer), (p.spec.prompt, answer)
            plain = judge(p.spec, image).reason  # in the words of shipped models
            assert holds_true(p.spec, np.asarray(image), plain), (p.spec.prompt, plain)
            assert not holds_true(p.spec, np.asarray(image), "there is no elephant")
    spec = parse("a photo of a red star and a blue cat")
    grey = Image.new("RGB", (48, 48), (153,) * 3)
    assert not judge(spec, grey).correct
    for reason, true in (
        ("there is no red star", True),
        ("No, there is no blue cat.", True),
        ("there is no cup", False),
    ):
        assert holds_true(spec, np.asarray(grey), reason) == true


def test_two_judges_of_the_same_images():
    def said(p_yes):
        return [
            ImageVerdict(f"p{i}", i % 2 == 0, p > 0.5, p, "", None if i % 2 == 0 else i > 3)
            for i, p in enumerate(p_yes)
        ]

    sure, doubtful = said([0.9, 0.1] * 6), said([0.9, 0.95] * 6)
    found = judge_measures.differences(sure, doubtful, "doubtful")
    assert found["balanced_accuracy"]["mean"] == found["sampled_balanced_accuracy"]["mean"] == 0.5
    assert (
        found["auroc"]["mean"] == 1.0
        and found["reasons"]["mean"] == 0.0
        and found["auroc"]["low"] > 0
    )
    with pytest.raises(InputError, match="judged other images"):
        judge_measures.differences(sure, doubtful[1:], "doubtful")


def test_pictures_that_cannot_be_read_are_named_and_counted(tmp_path):
    """The rows that can be judged are, and the result says of how many it is."""
    for name in ("broken_picture.jsonl", "broken_bytes.parquet"):
        run = CliRunner().invoke(
            app, ["judge", str(CASES / "pairs" / name), "--out", str(tmp_path / name)]
        )
        assert run.exit_code == 0 and "not judged: 1" in run.output and "2 of" in run.output, (
            run.output
        )
        rows = [
            json.loads(line)
            for line in (tmp_path / name / "verdicts.jsonl").read_text().splitlines()
        ]
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert [r["p_yes"] is None for r in rows].count(True) == 1 == len(result["unreadable"])
        assert (
            result["pairs"]
            == len(rows) - 1
            == result["yes"] + [r["yes"] for r in rows].count(False)
        )


def test_prompts_that_are_too_long_are_found_before_anything_is_judged(tmp_path):
    run = CliRunner().invoke(
        app, ["judge", str(CASES / "pairs" / "long_prompt.jsonl"), "--out", str(tmp_path)]
    )
    assert (
        isinstance(run.exception, InputError)
        and "4812 tokens" in str(run.exception)
        and "line 2" in str(run.exception)
    )
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_what_users_wrote_is_printed_as_they_wrote_it(tmp_path):
    prompt = "a photo of a [red] star [/b] :cat:"
    out = tmp_path / "run [/x]"
    for args in (
        ["draw", prompt, "--n", "2", "--rounds", "1", "--out", str(out)],
        ["show", str(out)],
    ):
        run = CliRunner().invoke(app, args)
        assert run.exit_code == 0 and run.output.count(prompt) == 2 and str(out) in run.output, (
            run.output
        )


def test_pairs_without_a_label_are_named_and_edits_are_judged_beside_their_source(
    mini, folder, tmp_path
):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()][:3]
    del rows[1]["good"]
    rows[2]["source"] = rows[0]["image"]
    (folder / "some.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    items, unlabelled = judging.labelled_pairs(folder / "some.jsonl", mini.template)
    assert [x.source is not None for x in items] == [False, True] and unlabelled == [
        rows[1]["image"]
    ]
    asked = []
    turns = mini.write
    mini.write = lambda requests, *a: asked.extend(requests) or turns(requests, *a)
    try:
        judging.judge_images(mini, items)
    finally:
        del mini.write
    assert [sum(isinstance(s, ImageInput) for s in r.segments) for r in asked] == [1, 2]
    rows[0]["prompt"] = "a photo of a red star " * 99
    (folder / "some.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(InputError, match=r"line 1 of .*some\.jsonl"):
        judging.labelled_pairs(folder / "some.jsonl", mini.template)
