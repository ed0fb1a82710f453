"""Lessons of mending, editing and judging edits: what they show is true, and nothing held out."""

import numpy as np
import pytest
import torch

from secondlook.config import parse as parse_config
from secondlook.errors import InputError
from secondlook.mini import datasets
from secondlook.mini.pretrain import lessons
from secondlook.mini.pretrain.config import BaseConfig
from secondlook.mini.pretrain.lessons import DrawLesson, JudgeLesson
from secondlook.mini.world import edits
from secondlook.mini.world.compound import parse
from secondlook.mini.world.language import phrase, scene_held_out
from secondlook.mini.world.reader import judge, read, scene_of
from secondlook.mini.world.reasons import holds_true
from secondlook.mini.world.render import render
from secondlook.mini.world.repair import diagnose
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate
from secondlook.types import ImageCodes

SHARES = datasets.KINDS | {"compound": 1.0}


def made(kind: str, n: int = 25):
    return lessons.lessons(np.random.default_rng(0), {kind: n}, lessons.Scope(SHARES))


def pixels(image) -> np.ndarray:
    return np.asarray(image)


def test_a_repair_shows_the_nearest_right_picture():
    bare = 0
    for lesson in made("repair", 40):
        spec, wrong = parse(lesson.prompt), pixels(lesson.wrong)
        assert judge(spec, lesson.image).correct and not judge(spec, wrong).correct
        assert (pixels(lesson.image) == render(diagnose(spec, wrong).repaired)).all()
        assert not scene_held_out(scene_of(read(lesson.image))) and lesson.before is lesson.wrong
        bare += lesson.verdict == "No."
        assert lesson.verdict == "No." or holds_true(spec, wrong, lesson.verdict)
    assert bare < 10


def test_a_counterfactual_reason_is_followed_and_not_the_prompt():
    for lesson in made("counterfactual"):
        spec = parse(lesson.prompt)
        assert not judge(spec, lesson.image).correct, "the reason asks for something else"
        assert not (pixels(lesson.image) == pixels(lesson.wrong)).all()
        assert lesson.verdict.count(";") < 3, "all that changes is told"


def test_edits_are_right_and_verdicts_on_them_true():
    for lesson in [*made("edit"), *made("redraw_edit")]:
        edit = edits.edit_of(lesson.prompt, lesson.source)
        assert edits.judge(edit, lesson.image).correct
        if lesson.wrong:
            judged = edits.judge(edit, lesson.wrong)
            assert lesson.verdict == f"No, {judged.reason}." and lesson.before is lesson.wrong
        else:
            assert lesson.before is lesson.source
    verdicts = made("judge_edit")
    assert len(verdicts) == 50, "a right and a wrong edit side by side"
    for lesson in verdicts:
        edit = edits.edit_of(lesson.prompt, lesson.source)
        right = edits.judge(edit, lesson.image).correct
        assert lesson.verdict.startswith("Yes" if right else "No")


def test_verdicts_on_parts_of_mixed_up_pictures():
    lessons_of_parts = made("bind", 40)
    for right, wrong in zip(lessons_of_parts[::2], lessons_of_parts[1::2], strict=True):
        spec = parse(right.prompt)
        assert right.prompt == wrong.prompt and right.source is None
        assert judge(spec, right.image).correct and right.verdict.startswith("Yes")
        assert not judge(spec, wrong.image).correct
        assert wrong.verdict.startswith("No, ")
        assert holds_true(spec, pixels(wrong.image), wrong.verdict)
        before, after = (scene_of(read(lesson.image)).things for lesson in (right, wrong))
        assert not scene_held_out(scene_of(read(wrong.image)))
        # what is there is what was there: no new colour, no new class
        assert {t.color for t in after} <= {t.color for t in before}
        assert {t.name for t in after} <= {t.name for t in before}


def test_a_part_has_no_more_clauses_than_are_asked_for():
    def most_clauses(bind_clauses: int) -> int:
        scope = lessons.Scope(SHARES, bind_clauses)
        made_lessons = lessons.lessons(np.random.default_rng(1), {"bind": 30}, scope)
        return max(len(parse(lesson.prompt).include) for lesson in made_lessons)

    assert (most_clauses(1), most_clauses(3)) == (1, 3)


def test_verdicts_on_prompts_in_another_order():
    """A judge that compares the i-th clause with the i-th object must fail on half of them."""
    rng = np.random.default_rng(2)
    pictures = datasets.pictures(rng, 60, kinds={"color_attr": 1.0, "compound": 1.0})
    asked = datasets.questions(rng, pictures, {"verdict": 1.0}, reordered=1.0)
    num_reordered = 0
    for picture, question in zip(pictures[::2], asked[::2], strict=True):
        parts = [
            set(prompt.removeprefix("a photo of ").replace(" and ", ", ").split(", "))
            for prompt in (picture.spec.prompt, question.prompt)
        ]
        assert parts[0] == parts[1] and judge(parse(question.prompt), question.image).correct
        num_reordered += question.prompt != picture.spec.prompt
    for right, wrong in zip(asked[::2], asked[1::2], strict=True):
        assert right.prompt == wrong.prompt
        assert not judge(parse(wrong.prompt), wrong.image).correct
    assert num_reordered > 15


def test_questions_of_what_stands_together():
    answers = {"Yes": 0, "No": 0}
    for lesson in made("bind_question", 80):
        things = scene_of(read(lesson.image)).things
        shown = {phrase(thing.name, 1, thing.color) for thing in things}
        asked = lesson.question.removeprefix("is there ").removesuffix("?")
        assert lesson.answer == ("Yes" if asked in shown else "No")
        answers[lesson.answer] += 1
        if lesson.answer == "No" and len(things) > 1:
            color = asked.split()[-2]
            # alone each is there, unless every colour stands with every class
            assert color in {t.color for t in things} or len({t.color for t in things}) == 1
    assert min(answers.values()) > 25


def test_what_a_base_learns_of_them(tmp_path):
    from secondlook.mini.pretrain.base_model import BaseJob

    counts = {
        "repair": 3,
        "edit": 2,
        "redraw_edit": 2,
        "judge_edit": 1,
        "bind": 1,
        "bind_question": 1,
    }
    config = BaseConfig(
        start=str(locate("mini-base")),
        lessons=counts,
        redraw_sees="last",
        draws=0,
        questions=0,
        chains=0,
        kinds=SHARES,
        prompt_dropout=0.0,
        runtime={"device": "cpu"},
    )
    job = BaseJob(config, tmp_path)
    (contexts, targets), weights, (judged, answers) = job.lessons(np.random.default_rng(0))
    assert len(contexts) == len(targets) == 7 and len(judged) == len(answers) == 5
    for context, target, own_weights in zip(contexts, targets, weights.split(36), strict=True):
        last_codes = [s.codes for s in context if isinstance(s, ImageCodes)][-1]
        is_changed = torch.tensor(last_codes) != torch.tensor(target.codes)
        assert is_changed.any() and (own_weights == torch.where(is_changed, 3.0, 1.0)).all()
    metrics = job.step(0)
    assert {"lesson_loss", "answer_loss", "words_loss"} == set(metrics)
    job.save_averaged(tmp_path / "model")
    assert Janus.load(tmp_path / "model").redraw_sees == "last"


def test_unknown_lessons_are_named():
    with pytest.raises(InputError, match=r"lessons has mend = 3; known are repair, counterfactual"):
        parse_config(BaseConfig, {"lessons": {"mend": 3}})
    with pytest.raises(InputError, match="lessons has counterfactual, which needs prompts"):
        parse_config(BaseConfig, {"lessons": {"counterfactual": 1}, "kinds": {"two": 1.0}})
    with pytest.raises(InputError, match="objects is 8, but compound prompts have all 16 classes"):
        parse_config(BaseConfig, {"objects": 8, "kinds": {"compound": 1.0}})
    assert {type(lesson) for lesson in made("judge_edit", 1)} == {JudgeLesson}
    assert {type(lesson) for lesson in made("edit", 1)} == {DrawLesson}
