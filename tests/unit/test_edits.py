"""Editing: the world's edits and their truth, the loop with a source, rewards, mini-PIE, the
command."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.cli.common import load_engine
from secondlook.data.prompts import open_prompts
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.errors import InputError
from secondlook.mini import datasets
from secondlook.mini.evals import pie
from secondlook.mini.verifier import Verifier
from secondlook.mini.world import edit_samples, edits
from secondlook.mini.world.language import scene_held_out
from secondlook.mini.world.reader import read, scene_of
from secondlook.mini.world.render import render
from secondlook.mini.world.scene import Scene, Thing
from secondlook.models import sampling as policy
from secondlook.rewards.reward import Score, Weighted, score
from secondlook.rewards.self_judge import SelfJudge
from secondlook.types import ImageCodes, ImageInput, Prompt, TokenIds

SOURCE = Scene.of([Thing(0, 0, "star", "red"), Thing(16, 24, "cat", "blue")])
EDITS = {kind: 0.2 for kind in edits.KINDS}


@pytest.fixture(scope="module")
def mini():
    return load_engine("mini")


def picture(scene):
    return Image.fromarray(render(scene))


def test_instructions_and_what_they_make():
    for instruction, gone, new in (
        ("make the star green", "red star", Thing(0, 0, "star", "green")),
        ("replace the blue cat with a red cup", "blue cat", Thing(16, 24, "cup", "red")),
        ("add a white sun at the bottom left", None, Thing(32, 0, "sun", "white")),
        ("remove the cat", "blue cat", None),
        ("move the star to the bottom right.", "red star", Thing(32, 32, "star", "red")),
    ):
        e = edits.parse(instruction, SOURCE)
        assert [f"{t.color} {t.name}" for t in e.gone] == ([gone] if gone else []) and e.new == (
            (new,) if new else ()
        )
        changed = (render(e.source) != render(e.target)).any(-1)
        assert changed.any() and not changed[~e.mask()].any(), "nothing changes outside the mask"
        assert edits.edit_of(instruction, picture(SOURCE)) == e, "read from the picture alone"
    for instruction, said in (
        ("make the dog green", "'the dog', which is not one object"),
        ("make the star red", "as it is"),
        ("move the star to the center", "over another"),
        ("move the star to the moon", "known are top left"),
        ("add a unicorn at the top", "'a unicorn'"),
        ("turn it around", "cannot be checked"),
    ):
        with pytest.raises(InputError, match=said):
            edits.parse(instruction, SOURCE)
    with pytest.raises(InputError, match="cannot be read"):
        edits.edit_of("remove the cat", Image.new("RGB", (48, 48), (9, 200, 9)))


def test_the_reader_judges_edits():
    rng, sizes = np.random.default_rng(0), list[int]()
    for _ in range(150):
        e = edit_samples.edit_lesson(rng)
        sizes.append(len(e.source.things))
        assert not scene_held_out(e.source) and not scene_held_out(e.target)
        assert edits.judge(e, picture(e.target)).correct
        nothing = edits.judge(e, picture(e.source))
        assert (
            not nothing.followed
            and nothing.preserved
            and nothing.reason.startswith(("there is no", "the "))
        )
        verdict = edits.judge(e, edit_samples.wrong_edit(rng, e))
        assert not verdict.correct
        for s, holds in (
            (verdict.following, verdict.followed),
            (verdict.preserving, verdict.preserved),
        ):
            assert (s > 0.5) == holds and 0 <= s <= 1
    assert 0.35 < np.mean([n == 3 for n in sizes]) < 0.7, (
        "as many objects as in mini-PIE, though few such scenes may be shown"
    )
    e = edits.parse("make the star green", SOURCE)
    spoilt = picture(Scene.of([Thing(0, 0, "star", "green"), Thing(16, 24, "cat", "pink")]))
    assert edits.judge(e, spoilt).reason == "the blue cat is not as it was"
    more = picture(Scene.of([*e.target.things, Thing(32, 0, "cup", "red")]))
    assert (
        edits.judge(e, more).reason == "there is also a red cup" and edits.judge(e, more).followed
    )
    moved = picture(Scene.of([Thing(0, 0, "star", "green"), Thing(32, 24, "cat", "blue")]))
    reading = edits.read(moved)
    assert pie.succeeds(e, reading) and not edits.judge(e, reading).correct, (
        "the target's objects, not its places"
    )


def test_mini_pie_is_held_out():
    rows = edit_samples.benchmark()
    assert len(rows) == 400 and {e.kind for e in rows} == set(edits.KINDS)
    assert all(scene_held_out(e.target) for e in rows) and rows == edit_samples.benchmark()
    assert not any(scene_held_out(e.target) for e in edit_samples.benchmark(5, "seen"))
    e = rows[0]
    still = pie.measure(e, picture(e.source))
    assert (
        still["success"] == still["exact"] == 0
        and still["mse"] == 0
        and still["ssim"] == pytest.approx(1, abs=1e-3)
    )
    done = pie.measure(e, picture(e.target))
    assert done["success"] == done["exact"] == 1 and done["mse"] == 0


def test_the_loop_with_a_source(mini):
    """The chain's segments, the twin's, and that the scorer gives what the sampler recorded."""
    source, template = picture(SOURCE), mini.template
    sampling = SamplingConfig(2.0, 1.0, 0, 0, 24, edit_guidance=3.0)
    episodes = run_episodes(
        mini, [Prompt("make the star green", source)] * 6, list(range(6)), 3, sampling
    )
    assert any(len(e.rounds) == 3 for e in episodes), (
        "a model that never learned to edit says No at times"
    )
    [codes] = mini.codes([source])
    for e in episodes:
        kinds = ["edit", "judge", *["redraw", "judge"] * (len(e.rounds) - 1)]
        assert [t.kind for t in e.turns] == kinds
        for t in e.turns:
            first = next(s for s in t.segments if isinstance(s, ImageCodes | ImageInput))
            assert (
                first == ImageCodes(codes)
                if t.sampling_params.head == "code"
                else first.image is source
            )
            assert t.sampling_params.guidance == (3.0 if t.sampling_params.head == "code" else 1.0)
            twin = template.unconditional(t.segments)
            assert [a == b for a, b in zip(t.segments, twin, strict=True)].count(False) == 1
    for head in ("code", "text"):
        turns = [t for e in episodes for t in e.turns if t.sampling_params.head == head]
        scored = policy.score(mini.janus, template, turns)
        assert scored.detach().tolist() == pytest.approx(
            [p for t in turns for p in t.logprobs], abs=2e-3
        )
    given = run_episodes(
        mini, [Prompt("make the star green", source, codes)] * 6, list(range(6)), 3, sampling
    )
    assert [[r.codes for r in e.rounds] for e in given] == [
        [r.codes for r in e.rounds] for e in episodes
    ]
    with pytest.raises(InputError, match="instruction: it is empty"):
        template.edit(codes, " ")
    words = [s.ids for s in template.edit(codes, "x") if isinstance(s, TokenIds) and s.droppable]
    assert template.tokenizer.decode(words[0]) == "x Please generate an image.\n\n<|Assistant|>:"


def test_rewards_of_edits(mini):
    e = edits.parse("make the star green", SOURCE)
    source, done, spoilt = (
        picture(SOURCE),
        picture(e.target),
        picture(Scene.of(e.target.things[:1])),
    )
    asked = Prompt(e.instruction, source)
    items = [
        (asked, done),
        (Prompt("a photo of a red star"), source),
        (asked, source),
        (asked, spoilt),
    ]
    right, drawn, copied, lost = score(Verifier(), items)
    assert (
        right.value == pytest.approx(1.0)
        and right.correct
        and right.edit == (pytest.approx(1.0), pytest.approx(1.0))
    )
    assert drawn.edit is None and drawn.correct, "a cat beside it is no harm"
    assert copied.edit[0] < 0.5 < copied.edit[1] and lost.edit[1] < 0.5 < lost.edit[0]
    assert copied.value == pytest.approx((0.5 * copied.edit[0] + copied.edit[1]) / 1.5)
    assert score(Verifier(), [(Prompt("paint it", source), done)]) == [None], "missing, not 0"
    both = Weighted([(1.0, Verifier()), (3.0, SelfJudge(mini))])
    [mixed] = score(both, [(asked, done)])
    [own] = SelfJudge(mini).edits([(e.instruction, source, done)])
    assert mixed.edit[0] == pytest.approx((1.0 + 3 * own.edit[0]) / 4, abs=1e-5)
    with pytest.raises(InputError, match="cannot judge edits"):
        score(lambda items: [Score(1.0, True, "")] * len(items), [(asked, done)])


def test_prompts_of_a_file(tmp_path):
    picture(SOURCE).save(tmp_path / "one.png")
    file = tmp_path / "edits.jsonl"
    file.write_text(
        '{"prompt": "remove the cat", "source": "one.png"}\n\n{"prompt": "a photo of a cat"}\n'
    )
    edit, drawing = [line.prompt() for line in open_prompts(str(file)).lines]
    assert edit.source is not None and drawing.source is None
    assert edit.key != edit.text and drawing.key == "a photo of a cat"
    file.write_text('{"text": "remove the cat"}\n')
    with pytest.raises(InputError, match=r"prompt: it is missing in line 1 of"):
        open_prompts(str(file))


def test_mini_pie_and_its_numbers(tmp_path):
    command = [
        "eval",
        "mini-pie",
        "--model",
        "mini",
        "--rows-per-kind",
        "2",
        "--rounds",
        "2",
        "--out",
        str(tmp_path),
    ]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    result = json.loads((tmp_path / "result.json").read_text())
    rows = json.loads((tmp_path / "episodes.json").read_text())
    assert result["images"] == len(rows) == 20
    for measure in ("success", "psnr"):
        by_kind = {
            k: [r["rounds"][r["final"]][measure] for r in rows if r["kind"] == k]
            for k in edits.KINDS
        }
        mean = np.mean([np.mean(v) for v in by_kind.values()])
        assert (
            result["overall"][measure]["mean"]
            == pytest.approx(mean)
            == result["overall"]["final"][measure]["mean"]
        )
    still = result["baselines"]["identity"]
    assert still["success"]["mean"] == 0 and still["mse"]["mean"] == 0
    assert (tmp_path / "benchmark.html").read_text().count("<img") >= 4


def test_the_shipped_model_edits_and_judges_edits():
    engine = load_engine("mini-edit")
    settings = pie.MiniPIE(samples=1, rounds=3, rows_per_kind=8)
    measured = pie.edit_and_measure(engine, settings, settings.sampling(engine))
    result = pie.summarize(measured, settings, {})
    assert result["overall"]["success"]["mean"] > 0.8 and result["overall"]["psnr"]["mean"] > 25
    rng = np.random.default_rng(1)
    right = datasets.edit_pictures(rng, 48)
    wrong = [datasets.wrong_edits(rng, p, 1)[0] for p in right]
    said = score(
        SelfJudge(engine),
        [(p.prompt, image) for p, w in zip(right, wrong, strict=True) for image in (p.image, w)],
    )
    assert np.mean([a.value > b.value for a, b in zip(said[::2], said[1::2], strict=True)]) > 0.75


def test_the_command(tmp_path):
    picture(SOURCE).save(tmp_path / "in.png")
    out = tmp_path / "out"
    command = [
        "edit",
        str(tmp_path / "in.png"),
        "make the star green",
        "remove the cat",
        "--out",
        str(out),
    ]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    one, two = (json.loads((out / n / "episode.json").read_text()) for n in "12")
    assert one["prompt"] == "make the star green" and two["seed"] == one["seed"] + 1
    carried = [
        np.asarray(Image.open(p)) for p in (out / "1" / "final.png", out / "2" / "source.png")
    ]
    assert np.array_equal(*carried), "the second instruction edits what the first one made"
    assert np.array_equal(
        *[np.asarray(Image.open(p)) for p in (out / "final.png", out / "2" / "final.png")]
    )
    assert scene_of(read(Image.open(out / "final.png"))) == Scene.of([Thing(0, 0, "star", "green")])
    again = CliRunner().invoke(app, command)
    assert (
        again.exit_code == 0
        and json.loads((out / "2" / "episode.json").read_text())["rounds"] == two["rounds"]
    )


def test_an_edit_is_judged_from_files(tmp_path):
    e = edits.parse("make the star green", SOURCE)
    for name, scene in (("in", e.source), ("done", e.target)):
        picture(scene).save(tmp_path / f"{name}.png")
    run = CliRunner().invoke(
        app,
        [
            "judge",
            str(tmp_path / "done.png"),
            e.instruction,
            "--source",
            str(tmp_path / "in.png"),
            "--model",
            "mini",
        ],
    )
    assert run.exit_code == 0 and run.output.startswith(("Yes", "No")), run.output
    (tmp_path / "pairs.jsonl").write_text(
        '{"image": "done.png", "prompt": "make the star green", "source": "in.png"}\n'
    )
    out = tmp_path / "out"
    again = CliRunner().invoke(
        app, ["judge", str(tmp_path / "pairs.jsonl"), "--model", "mini", "--out", str(out)]
    )
    assert again.exit_code == 0, again.output
    [row] = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert f"p(yes) {row['p_yes']:.3f}" in run.output, (
        "one picture or many, it is the same question"
    )
