"""Compound prompts, what is wrong with a picture of one, and its nearest repair."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from secondlook.errors import InputError
from secondlook.mini.verifier import Verifier
from secondlook.mini.world import compound, samples
from secondlook.mini.world.compound import (
    TASKS,
    benchmark_plus,
    compound_spec,
    held_clauses,
    num_held_out,
    sample_compound,
)
from secondlook.mini.world.edits import place_of
from secondlook.mini.world.language import Clause, benchmark, scene_held_out
from secondlook.mini.world.reader import judge, read
from secondlook.mini.world.reasons import truth, truth_of, verdict
from secondlook.mini.world.render import render
from secondlook.mini.world.repair import diagnose
from secondlook.mini.world.scene import CELL, CORNERS, Scene, Thing, layouts
from secondlook.types import Prompt


def spoiled(rng: np.random.Generator, scene: Scene) -> Scene:
    """One to three changes of a scene; it may be as it was."""
    things = list(scene.things)
    for _ in range(rng.integers(1, 4)):
        things = samples._changed(rng, things, (*samples._CHANGES, "move"))
    return Scene.of(things)


def test_layouts_are_all_ways_to_put_cells_without_overlap():
    assert layouts(5) is layouts(5) and not layouts(5).flags.writeable
    # kings on a 5x5 board that do not attack each other
    assert [len(layouts(n)) for n in range(1, 10)] == [25, 228, 964, 1987, 1974, 978, 242, 27, 1]
    for layout in layouts(8):
        assert Scene.of(Thing(*CORNERS[corner], "star", "red") for corner in layout).valid()


def test_a_prompt_says_what_it_asks_for():
    spec = compound_spec(
        (
            Clause("cat", 1, "blue"),
            Clause("star", 1, "red", ("left of", 0)),
            Clause("key", 2, "green"),
        ),
        absent=("horse",),
    )
    assert spec.prompt == "a photo of a red star left of a blue cat, two green keys and no horse"
    things = [
        Thing(0, 0, "star", "red"),
        Thing(0, 32, "cat", "blue"),
        Thing(32, 0, "key", "green"),
        Thing(32, 32, "key", "green"),
    ]
    assert held_clauses(spec, Scene.of(things)) == [True] * 5
    third_key = Thing(32, 16, "key", "green")
    assert held_clauses(spec, Scene.of([*things, third_key])) == [True, True, False, True, True]
    horse = Thing(16, 16, "horse", "black")
    assert held_clauses(spec, Scene.of([*things, horse])) == [True, True, True, True, False]
    swapped = [Thing(0, 32, "star", "red"), Thing(0, 0, "cat", "blue"), *things[2:]]
    assert held_clauses(spec, Scene.of(swapped)) == [True, True, True, False, True]


@pytest.mark.parametrize("seen", [True, False])
def test_samples_satisfy_their_prompts_and_keep_to_their_split(seen):
    rng = np.random.default_rng(0)
    for _ in range(80):
        sample, scene = sample_compound(rng, seen=seen)
        reading = read(render(scene))
        assert judge(sample.spec, reading).correct and all(held_clauses(sample.spec, reading))
        assert 3 <= sample.num_clauses <= 7 and len(scene.things) <= compound.MAX_THINGS
        assert num_held_out(sample.spec) == (0 if seen else 1)
        assert not seen or not scene_held_out(scene)


def test_prompts_are_read_as_they_were_meant():
    rng = np.random.default_rng(1)
    for seen in (True, False):
        for _ in range(150):
            spec = sample_compound(rng, seen=seen)[0].spec
            read_spec = compound.parse(spec.prompt)
            assert (read_spec.include, read_spec.exclude) == (spec.include, spec.exclude)
    for spec in benchmark():
        assert compound.parse(spec.prompt) == spec, "prompts that are not compound, too"
    with pytest.raises(InputError, match="cannot be checked because of 'two bicycles'"):
        compound.parse("a photo of two bicycles, a red key and no cat")


def test_the_benchmark_is_fixed():
    rows = benchmark_plus("held-out", 10)
    assert Counter(row.task for row in rows) == dict.fromkeys(TASKS, 10)
    assert len({row.spec.prompt for row in rows}) == len(rows)
    assert all(3 <= row.num_clauses <= 7 for row in benchmark_plus())
    assert rows == benchmark_plus.__wrapped__("held-out", 10)
    with pytest.raises(InputError, match="split: 'other'"):
        benchmark_plus("other")


def test_a_repair_is_right_and_changes_no_more_than_it_must():
    rng = np.random.default_rng(0)
    num_repaired = num_larger = 0
    for i in range(150):
        if i % 2:
            sample, scene = sample_compound(rng)
            spec = sample.spec
        else:
            spec, scene = samples.sample_scene(rng)
        wrong = spoiled(rng, scene)
        if not wrong.valid() or judge(spec, wrong).correct:
            continue
        diagnosis = diagnose(spec, wrong)
        assert diagnosis.faults and diagnosis.repaired.valid()
        assert judge(spec, diagnosis.repaired).correct
        assert diagnose(spec, render(wrong)) == diagnosis, "read from pixels it is the same"
        kept = set(wrong.things) & set(diagnosis.repaired.things)
        num_larger += len(kept) < len(set(wrong.things) & set(scene.things))
        num_repaired += 1
    assert num_repaired > 60 and num_larger <= 1, "the scene it was made from is no nearer"


def test_faults_point():
    spec = compound_spec((Clause("cat", 1, "red"), Clause("key", 1, "green")))
    cat, key = Thing(0, 0, "cat", "red"), Thing(32, 32, "key", "green")

    def faults(*things: Thing) -> tuple[str, ...]:
        return diagnose(spec, Scene.of(things)).faults

    assert faults(cat, key) == ()
    blue_cat = Thing(0, 0, "cat", "blue")
    assert faults(blue_cat, key) == ("the cat at the top left is blue, not red",)
    assert faults(Thing(0, 0, "sun", "red"), key) == (
        "there is a red sun at the top left, not a red cat",
    )
    [missing] = faults(key)
    assert missing.startswith("a red cat is missing at the ")
    assert faults(cat, key, Thing(0, 32, "cat", "blue")) == (
        "the blue cat at the top right should not be there",
    )
    assert faults(cat, key, Thing(0, 32, "sun", "blue")) == (), "what nobody speaks of may be there"
    broken = render(Scene.of([cat, key]))
    broken[0:6, 0:CELL] = 153  # the upper part of the cat is gone
    assert diagnose(spec, broken).faults == ("what is at the top left is no red cat",)


def test_what_stands_between_the_lines_is_mended_too():
    spec = compound_spec(
        (Clause("cat", 1, "red"), Clause("key", 1, "blue"), Clause("sun", 1, "pink"))
    )
    off_lattice = Scene.of([Thing(0, 17, "cat", "red"), Thing(30, 2, "key", "green")])
    diagnosis = diagnose(spec, off_lattice)
    assert judge(spec, diagnosis.repaired).correct
    assert "the key at the bottom left is green, not blue" in diagnosis.faults


def test_a_relation_that_fails_moves_one_object():
    spec = compound_spec((Clause("cat", 1, "red"), Clause("key", 1, "green", ("left of", 0))))
    wrong = Scene.of([Thing(16, 0, "cat", "red"), Thing(16, 16, "key", "green")])
    diagnosis = diagnose(spec, wrong)
    [fault] = diagnosis.faults
    assert " belongs at the " in fault
    assert judge(spec, diagnosis.repaired).correct
    assert len(set(wrong.things) & set(diagnosis.repaired.things)) == 1


def test_the_verifier_points_and_says_how_true_reasons_are():
    prompt = "a photo of a red cat, two blue keys and no dog".replace("dog", "horse")
    cat, key = Thing(0, 0, "cat", "red"), Thing(32, 0, "key", "blue")
    wrong = Image.fromarray(render(Scene.of([cat, key, Thing(32, 32, "key", "green")])))
    [score] = Verifier()([(prompt, wrong)])
    assert not score.correct and 0 < score.value < 0.5
    assert score.answer == "No, the key at the bottom right is green, not blue."
    reasons = [score.reason, f"{score.reason}; a red cat is missing at the top", "it is nice", ""]
    asked = [(prompt, wrong, reason) for reason in reasons]
    assert Verifier().reason_truths(asked) == [1.0, 0.5, 0.0, 0.0]
    assert Verifier().reason_truths([("a photo of a bicycle", wrong, "no")]) == [None]


def test_compound_prompts_are_one_kind_among_others():
    rng = np.random.default_rng(0)
    spec, scene = samples.sample_scene(rng, {"compound": 1.0})
    assert spec.tag == compound.TAG and judge(spec, scene).correct
    for _ in range(30):
        miss = samples.near_miss(rng, spec, scene, aimed=0.5)
        assert not judge(spec, miss).correct and not scene_held_out(miss)


def test_places_are_named_by_thirds():
    assert place_of(0, 8) == "top left" and place_of(16, 16) == "center"
    assert place_of(16, 32) == "right" and place_of(24, 16) == "bottom"


def test_the_truth_of_a_reason():
    spec = compound_spec((Clause("cat", 1, "red"), Clause("key", 1, "green")))
    scene = Scene.of([Thing(0, 0, "cat", "blue")])
    diagnosis = diagnose(spec, scene)
    assert truth_of(verdict(spec, scene), diagnosis) == 1.0
    elsewhere = "No, a green key is missing at the bottom left; the cat at the top left is black."
    assert truth_of(elsewhere, diagnosis) == 0.5, "a missing thing may come anywhere"
    assert truth_of("No.", diagnosis) is None


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a red star, cat and key",  # a bare noun is no absence
        "a photo of no cat",  # nothing but absences
        "a photo of two red cats left of a blue key and a star",
        "a photo of a cat, a cat and no key",
        "a photo of a cat, a key and no cat",
    ],
)
def test_other_prompts_are_refused(prompt):
    with pytest.raises(InputError, match="cannot be checked because of"):
        compound.parse(prompt)
    assert Verifier().why_not(Prompt(prompt))


def test_many_missing_objects_are_placed_quickly():
    rng = np.random.default_rng(0)
    spec = compound.parse("a photo of four red cats, two blue keys and two pink suns")
    for picture in (
        np.full((48, 48, 3), 153, np.uint8),
        rng.integers(0, 256, (48, 48, 3), np.uint8),
    ):
        diagnosis = diagnose(spec, picture)
        assert judge(spec, diagnosis.repaired).correct and len(diagnosis.faults) >= 8


def test_what_the_judge_calls_wrong_has_faults():
    cat, key = Thing(0, 0, "cat", "red"), Thing(24, 0, "key", "blue")
    spec = compound.parse("a photo of a red cat and a blue key")
    smeared = render(Scene.of([cat, key]))
    smeared[24:40, 24:40] = (205, 152, 177)  # no colour, and not background
    assert not judge(spec, smeared).correct
    assert diagnose(spec, smeared).faults == ("there is something else at the bottom right",)
    # a relation holds between all objects of its classes: the second star is too much
    below = compound.parse("a photo of a black cup below an orange star")
    stars = [Thing(0, 32, "star", "orange"), Thing(32, 8, "star", "orange")]
    scene = Scene.of([*stars, Thing(24, 32, "cup", "black")])
    assert not judge(below, scene).correct
    diagnosis = diagnose(below, scene)
    assert diagnosis.faults and judge(below, diagnosis.repaired).correct


def test_a_false_place_a_repeated_fault_and_a_second_way_to_say_it():
    spec = compound.parse("a photo of a red cat, a green key and a blue sun")
    picture = render(Scene.of([Thing(0, 0, "key", "green"), Thing(32, 32, "sun", "blue")]))
    for reason, share in (
        ("there is no red cat", 1.0),  # in the words of shipped models
        ("a red cat is missing at the top", 1.0),
        ("what is at the bottom right is no red cat", 0.0),
        ("the sun at the bottom is pink, not blue; what is at the center is no red cat", 0.0),
        ("a red cat is missing at the top; a red cat is missing at the left", 0.5),
        ("", None),
    ):
        assert truth(spec, picture, reason) == share, reason
    # another object stands in its stead: it is lacking all the same
    orange = render(Scene.of([Thing(0, 0, "heart", "orange"), Thing(32, 0, "key", "green")]))
    spec = compound.parse("a photo of a green heart, a green key and no sun")
    assert truth(spec, orange, "the heart at the top left is orange, not green") == 1
    assert truth(spec, orange, "a green heart is missing at the top left") == 1
    assert truth(spec, orange, "a green key is missing at the top left") == 0
