"""Mini-binding tells a judge that binds from one that counts along, and from one that looks at the
picture alone."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from secondlook.data.prompts import check_prompt_options
from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.evals.benchmark import EvalSession
from secondlook.evals.intervals import bootstrap
from secondlook.mini import datasets
from secondlook.mini.evals import binding as evals_binding
from secondlook.mini.evals.binding import GROUPS, MiniBinding, draw_pairs, tell_apart
from secondlook.mini.plugin import MiniPromptOptions, Rendered
from secondlook.mini.world import binding, samples
from secondlook.mini.world.compound import parse, parts_of
from secondlook.mini.world.language import phrase, scene_held_out, spec_held_out
from secondlook.mini.world.reader import judge, read, scene_of
from secondlook.models.janus.model import Janus


def by_content(prompt, image):
    return float(judge(parse(prompt), image).correct)


def by_order(prompt, image):
    """Compares the colours of the clauses with those of the objects asked for, one by one."""
    include = parse(prompt).include
    asked = {clause.name for clause in include}
    things = [t for t in scene_of(read(image)).things if t.name in asked]
    color_of_name = {thing.name: thing.color for thing in things}  # in reading order
    return float(sum(a == b.color for a, b in zip(color_of_name.values(), include, strict=True)))


def by_picture(prompt, image):
    """Knows right pictures by their classes, each of one colour, and reads no prompt."""
    colors_of_name = {}
    for thing in scene_of(read(image)).things:
        colors_of_name.setdefault(thing.name, set()).add(thing.color)
    return float(all(len(colors) == 1 for colors in colors_of_name.values()))


def engine_of(judges):
    """An engine whose verdicts are a function of prompt and picture; a question is whether any
    object is so."""

    def answer(question, image):
        asked = question.removeprefix("is there ").removesuffix("?")
        shown = {phrase(t.name, 1, t.color) for t in scene_of(read(image)).things}
        return float(asked in shown)

    template = SimpleNamespace(
        yes=1,
        no=2,
        judge=lambda prompt, images, reasons: (judges, prompt, images[0]),
        ask=lambda image, question: (answer, question, image),
    )

    def write(requests, sampling_params, max_tokens):
        turns = []
        for request in requests:
            judge_of, *arguments = request.segments
            turns.append(SimpleNamespace(p_yes=judge_of(*arguments)))
        return turns

    return SimpleNamespace(template=template, write=write)


@pytest.mark.parametrize(("name", "num_clauses", "shares"), GROUPS)
def test_pairs_differ_in_two_colours(name, num_clauses, shares):
    for pair in draw_pairs(np.random.default_rng(0), num_clauses, shares, 8):
        assert judge(pair.spec, pair.right).correct and not judge(pair.spec, pair.wrong).correct
        assert not scene_held_out(pair.right) and not scene_held_out(pair.wrong)
        assert not spec_held_out(pair.spec) and len(pair.spec.include) == num_clauses
        right, wrong = pair.right.things, pair.wrong.things
        assert [(t.name, t.y, t.x) for t in right] == [(t.name, t.y, t.x) for t in wrong]
        swapped = [a for a, b in zip(right, wrong, strict=True) if a != b]
        assert len(swapped) == 2
        assert all(Counter(t.name for t in right)[thing.name] == 1 for thing in swapped)
        if num_clauses > 1:
            assert set(pair.exchanged.include) == set(pair.spec.include)
            both_orders = zip(pair.spec.include, pair.exchanged.include, strict=True)
            moved = [a for a, b in both_orders if a != b]
            assert {clause.name for clause in moved} == {thing.name for thing in swapped}


def test_who_binds_and_who_does_not():
    settings = MiniBinding(pairs=8)
    perfect = tell_apart(engine_of(by_content), settings)
    assert {value["mean"] for value in perfect["kinds"].values()} == {1.0}
    assert perfect["headline"]["told_apart"]["mean"] == 1.0
    for kind, value in tell_apart(engine_of(by_order), settings)["kinds"].items():
        if kind.endswith("in order"):
            assert value["mean"] == 1.0, kind
        if kind.endswith("exchanged"):
            assert value["mean"] == 0.0, kind
    alone = tell_apart(engine_of(by_picture), settings)
    assert alone["headline"] == {
        name: {"mean": 0.5, "low": 0.5, "high": 0.5} for name in ("told_apart", "exchanged")
    }


def test_two_orders_of_a_scene_are_one_unit(monkeypatch):
    num_units = []

    def counting(units, statistic):
        num_units.append(len(units["told"]))
        return bootstrap(units, statistic)

    monkeypatch.setattr(evals_binding, "bootstrap", counting)
    tell_apart(engine_of(by_content), MiniBinding(pairs=5))
    *of_kinds, of_all, of_exchanged = num_units
    assert (set(of_kinds), of_all, of_exchanged) == ({5}, 5 * len(GROUPS), 5 * 4)


def test_the_shipped_model_runs_through(tmp_path):
    benchmark = MiniBinding(pairs=1)
    session = EvalSession("mini-binding", tmp_path, lambda name: Engine(Janus.load(name)))
    result = benchmark.run(session)
    assert json.loads((tmp_path / "result.json").read_text())["kinds"] == result["kinds"]
    assert len(benchmark.lines(result)) == len(result["kinds"]) + 2 == 14
    assert 0 <= benchmark.headline(result)["number"]["mean"] <= 1


def test_prompts_in_another_order_ask_for_the_same():
    rng = np.random.default_rng(3)
    for _ in range(200):
        spec, scene = samples.sample_scene(rng, samples.KINDS | {"compound": 1.0})
        other = binding.reordered(rng, spec)
        assert other.tag == spec.tag and judge(other, scene).correct
        is_one_part = sum(not part.startswith("no ") for part in parts_of(spec.prompt)) == 1
        assert (other.prompt == spec.prompt) == is_one_part


@pytest.mark.parametrize("pairs", [0, -1])
def test_a_number_of_pairs_is_checked(pairs):
    with pytest.raises(ValueError, match="pairs"):
        MiniBinding(pairs=pairs)


def test_prompts_of_the_plugin_in_another_order():
    """Right pictures and near misses stay so, and without the option prompts are what they were."""
    kinds = {"color_attr": 1.0, "compound": 1.0}
    plain, mixed = (
        MiniPromptOptions(kinds, share).sample(np.random.default_rng(5), 30) for share in (0, 1.0)
    )
    for a, b in zip(plain, mixed, strict=True):
        assert a.spec.prompt != b.spec.prompt and judge(b.spec, b.image).correct
    known = datasets.prompts(np.random.default_rng(5), 30, kinds)
    assert [a.spec for a in plain] == [a.spec for a in known]
    pictures_of = Rendered(
        "mini-base",
        lambda name: SimpleNamespace(codes=lambda images: images, pictures=lambda codes: codes),
        seed=0,
        images=3,
        prompt_options={"kinds": kinds, "reordered": 0.5},
    )
    options = MiniPromptOptions(kinds, 0.5)
    asked = [sample.prompt for sample in options.sample(np.random.default_rng([0, 0]), 12)]
    pictures = pictures_of(SimpleNamespace(start=0, size=12, prompts=asked))
    assert len(pictures) == 36
    for picture in pictures:
        is_right = judge(parse(picture.prompt.text), picture.image).correct
        assert is_right == (picture.source == "render")
    with pytest.raises(InputError, match=r"reordered = 1\.5 is wrong: it must be at most 1"):
        check_prompt_options("mini", {"reordered": 1.5})
