"""Lessons beyond drawing and questions: mend a picture, do what a reason says, edit, make an edit
again, judge an edit; name what is wrong; and tell who has which colour, who stands where, how many
there are.

A redraw is taught as a repair: its target is the nearest right picture, so that picture and reason
have something to tell. In a ``counterfactual`` one the reason asks for something else than the
prompt does, and the target is what the reason asks for: words are to be followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from secondlook.mini.world import binding, edit_samples, edits, near_misses, reasons, samples
from secondlook.mini.world.edits import Edit
from secondlook.mini.world.language import Spec, scene_held_out
from secondlook.mini.world.reader import judge
from secondlook.mini.world.render import render
from secondlook.mini.world.repair import Diagnosis, counterfactual, try_diagnose
from secondlook.mini.world.scene import Scene

REASON_TOKENS = 96
"""Tokens of a verdict that points, at most; for the checkpoint's generation config."""
NO_REASON = 0.04
"""How often a repair's verdict is a bare No."""
MORE_MISTAKES = (0.4, 0.3, 0.2, 0.1)
"""How often a wrong picture has none, one, two or three mistakes beside the first."""
REORDERED = 0.5
"""How often a prompt names objects in another order than the picture shows them."""


@dataclass(frozen=True)
class DrawLesson:
    """A picture to draw after a wrong one, or as an edit of a source."""

    prompt: str
    image: Image.Image
    wrong: Image.Image | None = None
    """The picture before, which is mended; None: it is the first edit."""
    verdict: str = ""
    """On that picture."""
    source: Image.Image | None = None
    """What is edited."""

    @property
    def before(self) -> Image.Image:
        """The picture that most of it is to be like."""
        before = self.wrong or self.source
        assert before is not None
        return before


@dataclass(frozen=True)
class JudgeLesson:
    """A verdict on a picture or, with a source, on an edit."""

    prompt: str
    image: Image.Image
    verdict: str
    source: Image.Image | None = None


Lesson = DrawLesson | JudgeLesson
MakeWrong = Callable[[np.random.Generator, Spec, Scene], Scene | None]


@dataclass(frozen=True)
class Scope:
    """What lessons are about."""

    shares: dict[str, float]
    """Of the kinds of prompts."""
    bind_clauses: int = 5
    """Most clauses of a prompt of ``bind``."""


def lessons(rng: np.random.Generator, counts: dict[str, int], scope: Scope) -> list[Lesson]:
    """As many lessons of each kind (of ``KINDS``) as ``counts`` says."""
    made: list[Lesson] = []
    for kind, count in counts.items():
        for _ in range(count):
            made += KINDS[kind](rng, scope)
    return made


def spoilt(rng: np.random.Generator, spec: Spec, scene: Scene) -> Scene:
    """A scene that fails a prompt after one to four mistakes in one that satisfies it. Not held
    out."""
    while True:
        wrong = scene
        for _ in range(1 + rng.choice(len(MORE_MISTAKES), p=MORE_MISTAKES)):
            wrong = samples.mistake(rng, spec, wrong)
        if not judge(spec, wrong).correct:
            return wrong
        if rng.random() < 0.02:  # of some scenes nearly every change is held out
            return samples.near_miss(rng, spec, scene)


def _repair(rng: np.random.Generator, scope: Scope) -> list[Lesson]:
    while True:
        spec, wrong, diagnosis = _wrong(rng, scope)
        # each fault is one object's: where more leave their places, one does so untold
        num_changed = len(set(wrong.things) - set(diagnosis.repaired.things))
        if not scene_held_out(diagnosis.repaired) and num_changed <= len(diagnosis.faults):
            verdict = "No." if rng.random() < NO_REASON else f"No, {diagnosis.reason}."
            return [DrawLesson(spec.prompt, _picture(diagnosis.repaired), _picture(wrong), verdict)]


def _fault(rng: np.random.Generator, scope: Scope) -> list[Lesson]:
    """A wrong picture and what is wrong with it. No right one beside it: there is nothing to find,
    and its words, the prompt's own, are learned at once."""
    spec, wrong, _ = _wrong(rng, scope)
    if rng.random() < REORDERED:
        spec = binding.reordered(rng, spec)
    return [JudgeLesson(spec.prompt, _picture(wrong), reasons.verdict(spec, wrong))]


def _wrong(rng: np.random.Generator, scope: Scope) -> tuple[Spec, Scene, Diagnosis]:
    """A prompt, a scene that fails it, and what fails."""
    while True:
        spec, scene = samples.sample_scene(rng, scope.shares)
        wrong = spoilt(rng, spec, scene)
        if diagnosis := try_diagnose(spec, wrong):
            return spec, wrong, diagnosis


def _counterfactual(rng: np.random.Generator, scope: Scope) -> list[Lesson]:
    while True:
        spec, scene = samples.sample_scene(rng, scope.shares)
        shown = scene if rng.random() < 0.6 else spoilt(rng, spec, scene)
        diagnosis = counterfactual(rng, spec, shown)
        if diagnosis and not scene_held_out(diagnosis.repaired):
            verdict = f"No, {diagnosis.reason}."
            return [DrawLesson(spec.prompt, _picture(diagnosis.repaired), _picture(shown), verdict)]


def _edit(rng: np.random.Generator, scope: Scope) -> list[Lesson]:
    edit = edit_samples.edit_lesson(rng)
    return [
        DrawLesson(edit.instruction, _picture(edit.target), source=_picture(edit.source)),
    ]


def _redraw_edit(rng: np.random.Generator, scope: Scope) -> list[Lesson]:
    edit = edit_samples.edit_lesson(rng)
    wrong = edit_samples.wrong_edit(rng, edit)
    return [
        DrawLesson(
            edit.instruction,
            _picture(edit.target),
            _picture(wrong),
            _verdict_on_edit(edit, wrong),
            _picture(edit.source),
        )
    ]


def _judge_edit(rng: np.random.Generator, scope: Scope) -> list[Lesson]:
    """The right edit and a wrong one: side by side they teach what tells them apart."""
    edit = edit_samples.edit_lesson(rng)
    source = _picture(edit.source)
    made: list[Lesson] = []
    for scene in (edit.target, edit_samples.wrong_edit(rng, edit)):
        verdict = _verdict_on_edit(edit, scene)
        made.append(JudgeLesson(edit.instruction, _picture(scene), verdict, source))
    return made


def _bind(rng: np.random.Generator, scope: Scope) -> list[Lesson]:
    """A prompt about a part of a picture, in any order, and beside the picture the same with two
    colours swapped."""
    while True:
        whole, scene = samples.sample_scene(rng, scope.shares)
        num_clauses = int(rng.integers(1, min(len(whole.include), scope.bind_clauses) + 1))
        found = binding.swapped(rng, scene, num_clauses)
        if found is None:
            continue
        part, wrong, _ = found
        spec = binding.reordered(rng, part) if rng.random() < REORDERED else part
        return _verdicts(spec, scene, wrong)


def _relate(rng: np.random.Generator, scope: Scope) -> list[Lesson]:
    """A picture, and one with the same objects in other places so that a relation fails."""
    return _near_miss(rng, scope, near_misses.misplaced)


def _count(rng: np.random.Generator, scope: Scope) -> list[Lesson]:
    """A picture, and one with too few, too many, or what was not to be there."""
    return _near_miss(rng, scope, near_misses.miscounted)


def _near_miss(rng: np.random.Generator, scope: Scope, make_wrong: MakeWrong) -> list[Lesson]:
    while True:
        spec, scene = samples.sample_scene(rng, scope.shares)
        wrong = make_wrong(rng, spec, scene)
        if wrong is None:
            continue
        if rng.random() < REORDERED:
            spec = binding.reordered(rng, spec)
        return _verdicts(spec, scene, wrong)


def _verdicts(spec: Spec, right: Scene, wrong: Scene) -> list[Lesson]:
    made: list[Lesson] = []
    for judged in (right, wrong):
        made.append(JudgeLesson(spec.prompt, _picture(judged), reasons.verdict(spec, judged)))
    return made


def _verdict_on_edit(edit: Edit, scene: Scene) -> str:
    judged = edits.judge(edit, scene)
    return f"{'Yes' if judged.correct else 'No'}, {judged.reason}."


def _picture(scene: Scene) -> Image.Image:
    return Image.fromarray(render(scene))


KINDS: dict[str, Callable[[np.random.Generator, Scope], list[Lesson]]] = {
    "repair": _repair,
    "fault": _fault,
    "counterfactual": _counterfactual,
    "edit": _edit,
    "redraw_edit": _redraw_edit,
    "judge_edit": _judge_edit,
    "bind": _bind,
    "relate": _relate,
    "count": _count,
}
"""Kind -> what makes its lessons."""
