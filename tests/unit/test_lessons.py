"""Lessons of mending, editing and judging edits: what they show is true, and nothing held out."""

import numpy as np
import pytest
import torch

from secondlook.config import parse as parse_config
from secondlook.errors import InputError
from secondlook.mini import datasets
from secondlook.mini.pretrain import lessons
from secondlook.mini.pretrain.config import BaseConfig
from secondlook.mini.pretrain.lessons import DrawLesson, JudgeEditLesson
from secondlook.mini.world import edits
from secondlook.mini.world.compound import parse
from secondlook.mini.world.language import scene_held_out
from secondlook.mini.world.reader import judge, read, scene_of
from secondlook.mini.world.reasons import holds_true
from secondlook.mini.world.render import render
from secondlook.mini.world.repair import diagnose
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate
from secondlook.types import ImageCodes

SHARES = datasets.KINDS | {"compound": 1.0}


def made(kind: str, n: int = 25):
    return lessons.lessons(np.random.default_rng(0), {kind: n}, SHARES)


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
        edit = edits.edit_of(lesson.instruction, lesson.source)
        right = edits.judge(edit, lesson.image).correct
        assert lesson.verdict.startswith("Yes" if right else "No")


def test_what_a_base_learns_of_them(tmp_path):
    from secondlook.mini.pretrain.base_model import BaseJob

    counts = {"repair": 3, "edit": 2, "redraw_edit": 2, "judge_edit": 1}
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
    assert len(contexts) == len(targets) == 7 and len(judged) == len(answers) == 2
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
    assert {type(lesson) for lesson in made("judge_edit", 1)} == {JudgeEditLesson}
    assert {type(lesson) for lesson in made("edit", 1)} == {DrawLesson}
