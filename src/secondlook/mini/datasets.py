"""Training data of the miniature's world. A batch depends only on (seed, step): a resumed job sees
what it would have seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secondlook.data.sft_dataset import short
from secondlook.errors import InputError
from secondlook.mini.world import edits, samples
from secondlook.mini.world.edits import Edit
from secondlook.mini.world.language import NUMBERS, Spec, phrase, plurals
from secondlook.mini.world.reader import judge
from secondlook.mini.world.render import render
from secondlook.mini.world.scene import CELL, COLORS, OBJECTS, RELATIONS, SIZE, STEP, Scene
from secondlook.models.janus.model import to_unit
from secondlook.types import Prompt

SIDE = SIZE // STEP
KINDS, EDITS = samples.KINDS, edits.KINDS
ALL_KINDS = KINDS | EDITS
"""Kinds of prompts for pictures and of instructions for edits."""


def check_shares(name: str, shares: dict[str, float], known: dict[str, float]) -> None:
    """Refuse shares (a config's field ``name``) of what is not ``known``, negative ones, and none
    at all."""
    if unknown := sorted(set(shares) - set(known)):
        raise InputError(f"config: {name} has {unknown[0]!r}; known are {', '.join(known)}")
    if not shares or min(shares.values()) < 0 or not sum(shares.values()):
        raise InputError(
            f"config: {name} is {shares}; give shares that are not negative and not all 0"
        )


@dataclass(frozen=True)
class Picture:
    """A prompt, a scene that satisfies it, and the scene's picture."""

    spec: Spec
    scene: Scene
    image: Image.Image

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.spec.prompt)


def pictures(
    rng: np.random.Generator,
    n: int,
    alone: float = 0.0,
    kinds: dict[str, float] = KINDS,
    objects: int = len(OBJECTS),
) -> list[Picture]:
    """``n`` samples with their pictures, of ``kinds`` in their shares but a share ``alone`` of them
    with one object; of the first ``objects`` classes."""
    drawn = (
        samples.sample_scene(
            rng, samples.ALONE if alone and rng.random() < alone else kinds, objects
        )
        for _ in range(n)
    )
    return [Picture(spec, scene, Image.fromarray(render(scene))) for spec, scene in drawn]


def pixels(items: list[Picture]) -> Tensor:
    """(n, 3, S, S) in [-1, 1]."""
    return to_unit(torch.from_numpy(np.stack([np.asarray(p.image) for p in items])))


def readable(items: list[Picture], images) -> float:
    """Share of ``images`` that still satisfy their prompts."""
    return float(
        np.mean([judge(p.spec, image).correct for p, image in zip(items, images, strict=True)])
    )


def cells(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """What each 8-px cell shows: (36,) part (0 nothing, else 1 + 4 * object + quadrant) and (36,)
    colour (0 nothing)."""
    part, color = np.zeros((SIDE, SIDE), np.int64), np.zeros((SIDE, SIDE), np.int64)
    half = CELL // STEP
    for t in scene.things:
        y, x = t.y // STEP, t.x // STEP
        part[y : y + half, x : x + half] = (
            1 + 4 * OBJECTS.index(t.name) + np.arange(4).reshape(2, 2)
        )
        color[y : y + half, x : x + half] = 1 + list(COLORS).index(t.color)
    return part.reshape(-1), color.reshape(-1)


N_OBJECTS = len(OBJECTS)
N_PARTS, N_COLORS = 1 + 4 * len(OBJECTS), 1 + len(COLORS)


def corpus(seed: int, n: int) -> list[str]:
    """Sentences for the text tokenizer: prompts, captions, questions, answers and reasons."""
    rng = np.random.default_rng([seed, 7])
    out = [samples.DESCRIBE]
    for _ in range(n):
        spec, scene = samples.sample_scene(rng)
        question, answer = samples.question(rng, scene)
        out += [spec.prompt, samples.caption(scene), question, answer, reason(spec, scene)]
        out.append(reason(spec, samples.near_miss(rng, spec, scene)))
    out += (
        [f" {phrase(o)} {plurals()[o]}" for o in OBJECTS]
        + [f" {c}" for c in COLORS]
        + [f" {r}" for r in RELATIONS]
    )
    return out + list(NUMBERS.values())


def reason(spec: Spec, scene: Scene) -> str:
    """ "No, there is a red star but no blue cat." """
    verdict = judge(spec, scene)
    return f"{'Yes' if verdict.correct else 'No'}, {verdict.reason}."


@dataclass(frozen=True)
class Question:
    """An image, what is asked of it and the answer; for a judge's question ``prompt``, else None,
    and the wrong pictures that came ``earlier`` with their reasons."""

    image: Image.Image
    question: str
    answer: str
    prompt: str | None = None
    earlier: tuple[tuple[Image.Image, str], ...] = ()


QUESTION_WEIGHTS = {"there": 0.42, "parts": 0.18, "describe": 0.1, "verdict": 0.3}
"""Shares of the questions: "is there …?", colours, counts and relations, what is in the picture,
does it match a prompt."""


def questions(
    rng: np.random.Generator,
    items: list[Picture],
    question_weights: dict[str, float],
    aimed: float = 0.0,
    context: int = 1,
) -> list[Question]:
    """As many questions as ``items``, of kinds in the shares ``question_weights``.

    Every second verdict is of a near miss of the one before, a share ``aimed`` of which attack what
    the prompt asks for: side by side in a batch the two teach only what tells them apart
    (docs/LOG.md). Up to ``context`` - 1 wrong pictures come before a judged one.
    """
    weights = list(question_weights.values())
    shares = np.array(weights) / sum(weights)
    kinds = rng.choice(list(question_weights), size=len(items), p=shares)
    out = []
    right: Picture | None = None
    for p, kind in zip(items, kinds, strict=True):
        if kind in ("there", "parts"):
            question, answer = samples.question(rng, p.scene, there=float(kind == "there"))
            out.append(Question(p.image, question, answer))
        elif kind == "describe":
            out.append(Question(p.image, samples.DESCRIBE, samples.caption(p.scene)))
        else:
            judged = right or p
            *earlier, (image, answer) = wrong(rng, judged, 1 + short(rng, context), aimed)
            if not right:
                image, answer = p.image, reason(p.spec, p.scene)
            out.append(Question(image, "", answer, judged.spec.prompt, tuple(earlier)))
            right = None if right else p
    return out


def wrong(
    rng: np.random.Generator, p: Picture, n: int, aimed: float = 0.0
) -> list[tuple[Image.Image, str]]:
    """``n`` pictures that fail ``p``'s prompt by one change of its scene (``samples.near_miss``),
    and why they do."""
    scenes = [samples.near_miss(rng, p.spec, p.scene, aimed) for _ in range(n)]
    return [(Image.fromarray(render(s)), reason(p.spec, s)) for s in scenes]


@dataclass(frozen=True)
class EditPicture:
    """An edit, its source's picture and the right one."""

    edit: Edit
    source: Image.Image
    image: Image.Image

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.edit.instruction, self.source)


def edit_pictures(
    rng: np.random.Generator, n: int, kinds: dict[str, float] = EDITS
) -> list[EditPicture]:
    """``n`` edits of ``kinds`` in their shares."""
    found = (edits.edit_lesson(rng, kinds) for _ in range(n))
    return [
        EditPicture(e, *(Image.fromarray(render(s)) for s in (e.source, e.target))) for e in found
    ]


def wrong_edits(rng: np.random.Generator, p: EditPicture, n: int) -> list[Image.Image]:
    """``n`` pictures that are no right edit."""
    return [Image.fromarray(render(edits.wrong_edit(rng, p.edit))) for _ in range(n)]


def prompts(
    rng: np.random.Generator, n: int, kinds: dict[str, float] = KINDS
) -> list[Picture | EditPicture]:
    """``n`` prompts of the world with pictures that satisfy them, of ``kinds`` in their shares:
    pictures and edits."""
    drawn = {kind: share for kind, share in kinds.items() if kind in KINDS and share}
    edited = {kind: share for kind, share in kinds.items() if kind in EDITS and share}
    if not edited:
        return [*pictures(rng, n, kinds=drawn)]
    n_edits = n
    if drawn:
        n_edits = int(rng.binomial(n, sum(edited.values()) / sum(kinds.values())))
    items: list[Picture | EditPicture] = []
    if n > n_edits:
        items += pictures(rng, n - n_edits, kinds=drawn)
    if n_edits:
        items += edit_pictures(rng, n_edits, edited)
    return [items[i] for i in rng.permutation(n)]


@dataclass(frozen=True)
class Chain:
    """For redrawing: a prompt, wrong pictures with their reasons, and the right picture."""

    prompt: str
    wrong: tuple[Image.Image, ...]
    reasons: tuple[str, ...]
    right: Image.Image


def chains(rng: np.random.Generator, items: list[Picture]) -> list[Chain]:
    """One or two near misses before each picture."""
    out = []
    for p in items:
        images, reasons = zip(*wrong(rng, p, 1 if rng.random() < 0.8 else 2), strict=True)
        out.append(Chain(p.spec.prompt, images, reasons, p.image))
    return out
