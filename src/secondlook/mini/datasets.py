"""Training data of the miniature's world. A batch depends only on (seed, step): a resumed job sees
what it would have seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secondlook.data.sft_dataset import short
from secondlook.errors import InputError
from secondlook.mini.world import binding, compound, edit_samples, edits, samples
from secondlook.mini.world.edits import Edit
from secondlook.mini.world.language import NUMBERS, Spec, phrase, plurals
from secondlook.mini.world.reader import judge
from secondlook.mini.world.reasons import verdict
from secondlook.mini.world.render import render
from secondlook.mini.world.scene import COLORS, OBJECTS, RELATIONS, SIZE, STEP, Scene
from secondlook.models.janus.model import to_unit
from secondlook.types import Prompt

SIDE = SIZE // STEP  # 8-px cells along one side of the canvas
KINDS, EDITS = samples.KINDS, edits.KINDS
ALL_KINDS = KINDS | EDITS
"""Kinds of prompts for pictures and of instructions for edits."""


def check_shares(name: str, shares: dict[str, float], known: dict[str, float]) -> None:
    """Refuse shares (a config's field ``name``) of what is not ``known``, negative ones, and none
    at all."""
    if unknown_kinds := sorted(set(shares) - set(known)):
        raise InputError(f"config: {name} has {unknown_kinds[0]!r}; known are {', '.join(known)}")
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
    sampled_pictures = []
    for _ in range(n):
        # without ``alone`` no number is drawn for it
        one_object = alone and rng.random() < alone
        shares = samples.ALONE if one_object else kinds
        spec, scene = samples.sample_scene(rng, shares, objects)
        sampled_pictures.append(Picture(spec, scene, Image.fromarray(render(scene))))
    return sampled_pictures


def pixels(items: list[Picture]) -> Tensor:
    """(n, 3, S, S) in [-1, 1]."""
    image_arrays = [np.asarray(item.image) for item in items]  # (S, S, 3) uint8 each
    return to_unit(torch.from_numpy(np.stack(image_arrays)))


def readable(items: list[Picture], images) -> float:
    """Share of ``images`` that still satisfy their prompts."""
    num_correct = 0
    for item, image in zip(items, images, strict=True):
        num_correct += judge(item.spec, image).correct
    return num_correct / len(items)


def cells(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """What each 8-px cell shows: (36,) part (0 nothing, else 1 + 4 * object + quadrant) and (36,)
    colour (0 nothing)."""
    part_labels, color_labels = np.zeros((SIDE, SIDE), np.int64), np.zeros((SIDE, SIDE), np.int64)
    quadrants = np.arange(4).reshape(2, 2)  # an object covers 2x2 of these cells
    for thing in scene.things:
        y, x = thing.y // STEP, thing.x // STEP
        part_labels[y : y + 2, x : x + 2] = 1 + 4 * OBJECTS.index(thing.name) + quadrants
        color_labels[y : y + 2, x : x + 2] = 1 + list(COLORS).index(thing.color)
    return part_labels.reshape(-1), color_labels.reshape(-1)


N_OBJECTS = len(OBJECTS)
N_PARTS, N_COLORS = 1 + 4 * len(OBJECTS), 1 + len(COLORS)  # labels of `cells`


def corpus(seed: int, n: int) -> list[str]:
    """Sentences for the text tokenizer: prompts, captions, questions, answers and reasons."""
    rng = np.random.default_rng([seed, 7])
    sentences = [samples.DESCRIBE]
    kinds = KINDS | {compound.TAG: sum(KINDS.values())}  # every second prompt is compound
    for _ in range(n):
        spec, scene = samples.sample_scene(rng, kinds)
        question, answer = samples.question(rng, scene)
        sentences += [spec.prompt, samples.caption(scene), question, answer, verdict(spec, scene)]
        sentences.append(verdict(spec, samples.near_miss(rng, spec, scene)))
    # every word of the world once, also those that a small corpus does not hold
    sentences += [f" {phrase(name)} {plurals()[name]}" for name in OBJECTS]
    sentences += [f" {word}" for word in (*COLORS, *RELATIONS)]
    return sentences + list(NUMBERS.values())


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
    reordered: float = 0.0,
) -> list[Question]:
    """As many questions as ``items``, of kinds in the shares ``question_weights``.

    Every second verdict is of a near miss of the one before, a share ``aimed`` of which attack what
    the prompt asks for: side by side in a batch the two teach only what tells them apart
    (docs/LOG.md). Up to ``context`` - 1 wrong pictures come before a judged one. The prompts of a
    share ``reordered`` name the objects in another order than pictures show them.
    """
    weights = list(question_weights.values())
    shares = np.array(weights) / sum(weights)
    question_kinds = rng.choice(list(question_weights), size=len(items), p=shares)
    asked_questions = []
    judged_right: Picture | None = None  # the last verdict's item, if its near miss comes next
    for item, question_kind in zip(items, question_kinds, strict=True):
        if question_kind in ("there", "parts"):
            there = float(question_kind == "there")
            question, answer = samples.question(rng, item.scene, there=there)
            asked_questions.append(Question(item.image, question, answer))
        elif question_kind == "describe":
            caption = samples.caption(item.scene)
            asked_questions.append(Question(item.image, samples.DESCRIBE, caption))
        else:
            if judged_right is None:
                (item,) = _reordered(rng, [item], reordered)
            judged_picture = judged_right or item
            # the last wrong picture is the one asked about; before a right one it is not shown
            *earlier_wrong, (image, answer) = wrong(
                rng, judged_picture, 1 + short(rng, context), aimed
            )
            if judged_right is None:
                image, answer = item.image, verdict(item.spec, item.scene)
            asked_questions.append(
                Question(image, "", answer, judged_picture.spec.prompt, tuple(earlier_wrong))
            )
            judged_right = item if judged_right is None else None
    return asked_questions


def wrong(
    rng: np.random.Generator, p: Picture, n: int, aimed: float = 0.0
) -> list[tuple[Image.Image, str]]:
    """``n`` pictures that fail ``p``'s prompt by one change of its scene (``samples.near_miss``),
    and why they do."""
    wrong_pictures = []
    for _ in range(n):
        scene = samples.near_miss(rng, p.spec, p.scene, aimed)
        wrong_pictures.append((Image.fromarray(render(scene)), verdict(p.spec, scene)))
    return wrong_pictures


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
    sampled_edits = []
    for _ in range(n):
        edit = edit_samples.edit_lesson(rng, kinds)
        source_image = Image.fromarray(render(edit.source))
        target_image = Image.fromarray(render(edit.target))
        sampled_edits.append(EditPicture(edit, source_image, target_image))
    return sampled_edits


def wrong_edits(rng: np.random.Generator, p: EditPicture, n: int) -> list[Image.Image]:
    """``n`` pictures that are no right edit."""
    return [Image.fromarray(render(edit_samples.wrong_edit(rng, p.edit))) for _ in range(n)]


def prompts(
    rng: np.random.Generator,
    n: int,
    kinds: dict[str, float] = KINDS,
    reordered: float = 0.0,
) -> list[Picture | EditPicture]:
    """``n`` prompts of the world with pictures that satisfy them, of ``kinds`` in their shares:
    pictures and edits. A share ``reordered`` of the prompts for pictures name the objects in
    another order than their picture shows them."""
    picture_shares: dict[str, float] = {}
    edit_shares: dict[str, float] = {}
    for kind, share in kinds.items():
        if share and kind in KINDS:
            picture_shares[kind] = share
        elif share and kind in EDITS:
            edit_shares[kind] = share
    if not edit_shares:
        return [*_reordered(rng, pictures(rng, n, kinds=picture_shares), reordered)]
    n_edits = n
    if picture_shares:
        n_edits = int(rng.binomial(n, sum(edit_shares.values()) / sum(kinds.values())))
    sampled_prompts: list[Picture | EditPicture] = []
    if n > n_edits:
        sampled_pictures = pictures(rng, n - n_edits, kinds=picture_shares)
        sampled_prompts += _reordered(rng, sampled_pictures, reordered)
    if n_edits:
        sampled_prompts += edit_pictures(rng, n_edits, edit_shares)
    return [sampled_prompts[i] for i in rng.permutation(n)]


def _reordered(rng: np.random.Generator, items: list[Picture], share: float) -> list[Picture]:
    """The pictures, a share of them with their prompt's parts in another order."""
    if not share:  # then no number is drawn
        return items
    reordered_items = []
    for item in items:
        if rng.random() < share:
            item = replace(item, spec=binding.reordered(rng, item.spec))
        reordered_items.append(item)
    return reordered_items


@dataclass(frozen=True)
class Chain:
    """For redrawing: a prompt, wrong pictures with their reasons, and the right picture."""

    prompt: str
    wrong: tuple[Image.Image, ...]
    reasons: tuple[str, ...]
    right: Image.Image


def chains(rng: np.random.Generator, items: list[Picture]) -> list[Chain]:
    """One near miss (of a fifth: two) before each picture."""
    redraw_chains = []
    for item in items:
        num_wrong = 1 if rng.random() < 0.8 else 2
        wrong_pictures = wrong(rng, item, num_wrong)
        wrong_images = tuple(image for image, _ in wrong_pictures)
        wrong_reasons = tuple(reason for _, reason in wrong_pictures)
        redraw_chains.append(Chain(item.spec.prompt, wrong_images, wrong_reasons, item.image))
    return redraw_chains
