"""Reads any picture: which objects are in it, and GenEval's verdict on a specification.

Detection replaces GenEval's Mask2Former and CLIP: every pixel goes to the nearest palette colour
(or to none, when all are far), every pictogram is laid on every position of every colour's mask,
and the intersection over union with *all* that is not background under it, in the worst of its four
quadrants, becomes the confidence. So holes, chips, second colours, smears and a quadrant of another
object all cost. The rules after detection are GenEval's (thresholds 0.3, for counting 0.9; top 16;
exact counts in counting only; its position rule), with one tightening, because a policy is rewarded
by this reader: leftovers that belong to no object fail the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from secondlook.mini.world.language import NUMBERS, Clause, Spec, listing, phrase, plurals
from secondlook.mini.world.scene import (
    BACKGROUND,
    CELL,
    COLORS,
    SIZE,
    Scene,
    Thing,
    box,
    pictograms,
    relations,
)

FAR = 60.0  # RGB distance beyond which a pixel has no colour
LOWEST, FULL = 0.70, 0.90  # IoU of the worst quadrant at which the confidence is 0 and 1
THRESHOLD, COUNTING_THRESHOLD, TOP = 0.3, 0.9, 16
LEFTOVER = 24  # pixels that may belong to no object
_NAMES = tuple(pictograms())
_TEMPLATES = np.stack(list(pictograms().values())).astype(np.float32)
_HALF = CELL // 2
_QUADRANTS = tuple(np.s_[..., y : y + _HALF, x : x + _HALF] for y in (0, _HALF) for x in (0, _HALF))
_PALETTE = np.array([*COLORS.values(), BACKGROUND], np.float32)


@dataclass(frozen=True)
class Detection:
    """One object that was found: class, colour, box (x1, y1, x2, y2) and confidence in [0, 1]."""

    name: str
    color: str
    box: tuple[int, int, int, int]
    confidence: float


@dataclass(frozen=True)
class Reading:
    """What a picture holds: objects by falling confidence, and how many pixels belong to none of
    them."""

    objects: tuple[Detection, ...]
    leftover: int = 0


@dataclass(frozen=True)
class Verdict:
    """GenEval's verdict, the soft score S in [0, 1] and one sentence that names what fails (or what
    is there)."""

    correct: bool
    score: float
    reason: str


def to_canvas(image: Image.Image | np.ndarray) -> np.ndarray:
    """Any picture as (48, 48, 3) uint8; other sizes are area-averaged."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(image)


def read(image: Image.Image | np.ndarray) -> Reading:
    """Detect the objects of any picture. Never raises on a broken one: it just finds less in it."""
    pixels = to_canvas(image).astype(np.float32)
    distances = np.linalg.norm(pixels[:, :, None] - _PALETTE, axis=-1)
    labels = distances.argmin(-1)
    labels[distances.min(-1) > FAR] = -1
    foreground = labels != len(COLORS)
    around = sliding_window_view(foreground, (CELL, CELL))
    found: list[tuple[float, str, str, int, int]] = []
    for index, color in enumerate(COLORS):
        mask = labels == index
        if mask.sum() < 40:
            continue
        windows = sliding_window_view(mask, (CELL, CELL))
        ys, xs = np.nonzero(windows.sum((-1, -2)) >= 40)
        iou = _worst_quadrant(windows[ys, xs], around[ys, xs])
        for i, k in zip(*np.nonzero(iou > LOWEST), strict=True):
            found.append((float(iou[i, k]), _NAMES[k], color, int(ys[i]), int(xs[i])))
    objects: list[Detection] = []
    corners: list[tuple[int, int]] = []
    for iou_value, name, color, y, x in sorted(found, reverse=True):
        if all(abs(y - v) >= CELL // 2 or abs(x - u) >= CELL // 2 for v, u in corners):
            corners.append((y, x))
            rows, cols = np.nonzero(pictograms()[name])
            bounds = (
                x + int(cols.min()),
                y + int(rows.min()),
                x + int(cols.max()) + 1,
                y + int(rows.max()) + 1,
            )
            objects.append(
                Detection(name, color, bounds, min(1.0, (iou_value - LOWEST) / (FULL - LOWEST)))
            )
    for y, x in corners:
        foreground[y : y + CELL, x : x + CELL] = False
    return Reading(tuple(objects), int(foreground.sum()))


def _worst_quadrant(colored: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """IoU (n, objects) of windows (n, 16, 16) with every pictogram, the smallest of the four
    quadrants'."""
    worst = np.ones((len(colored), len(_NAMES)), np.float32)
    for quadrant in _QUADRANTS:
        template = _TEMPLATES[quadrant].reshape(len(_NAMES), _HALF**2)
        inside = colored[quadrant].reshape(len(colored), _HALF**2).astype(np.float32) @ template.T
        union = foreground[quadrant].sum((-1, -2))[:, None] + template.sum(1) - inside
        np.minimum(worst, np.where(union > 0, inside / np.maximum(union, 1), 1.0), out=worst)
    return worst


def reading_of(scene: Scene) -> Reading:
    """What a perfect reader sees in a scene's picture."""
    return Reading(tuple(Detection(t.name, t.color, box(t), 1.0) for t in scene.things))


def scene_of(reading: Reading) -> Scene:
    """The scene whose picture would be read so (for pictures whose objects are all in their
    cells)."""
    things = []
    for d in reading.objects:
        rows, cols = np.nonzero(pictograms()[d.name])
        things.append(
            Thing(d.box[1] - int(rows.min()), d.box[0] - int(cols.min()), d.name, d.color)
        )
    return Scene.of(things)


@dataclass(frozen=True)
class _Account:
    """What a picture has of a specification: S's atoms, whether all holds, what fails and what
    holds (what, why not)."""

    atoms: list[float]
    correct: bool
    failures: list[tuple[str, str]]
    held: list[tuple[str, str]]


def _account(spec: Spec, picture: Reading | Scene | Image.Image | np.ndarray) -> _Account:
    if isinstance(picture, Scene):
        picture = reading_of(picture)
    elif not isinstance(picture, Reading):
        picture = read(picture)
    threshold = COUNTING_THRESHOLD if spec.tag == "counting" else THRESHOLD
    boxes: dict[str, list[Detection]] = {}
    for d in sorted(picture.objects, key=lambda d: -d.confidence):
        kept = boxes.setdefault(d.name, [])
        if d.confidence > threshold and len(kept) < TOP:
            kept.append(d)
    atoms: list[float] = []
    correct = picture.leftover <= LEFTOVER
    failures: list[tuple[str, str]] = []
    held: list[tuple[str, str]] = []
    kept_by_clause: list[list[Detection]] = []
    for clause in spec.include:
        ok, kept, why = _clause(spec, clause, boxes.get(clause.name, []), kept_by_clause, atoms)
        kept_by_clause.append(kept)
        correct &= ok
        (held if ok else failures).append(why)
    for clause in spec.exclude:
        there = sum(clause.color in (None, d.color) for d in boxes.get(clause.name, []))
        exact = there < clause.count
        atoms.append(float(exact))
        if not exact:
            correct = False
            failures.append((_several(clause.name, there), f"not {NUMBERS[clause.count - 1]}"))
            held = []
    return _Account(atoms, bool(correct), failures, held)


def judge(spec: Spec, picture: Reading | Scene | Image.Image | np.ndarray) -> Verdict:
    """GenEval's verdict on a picture, its soft score and its reason.

    S is 0.45 times the mean over atoms (each object asked for, its colour, the exact count where
    asked, each relation; an object counts with its confidence) plus 0.55 for a correct verdict:
    below 0.5, the paper's threshold for negatives, exactly when the picture is wrong.
    """
    a = _account(spec, picture)
    score = 0.45 * float(np.mean(a.atoms)) + 0.55 * a.correct
    return Verdict(a.correct, score, _sentence(a.correct, a.failures, a.held, spec))


def names_a_failure(
    spec: Spec, picture: Reading | Scene | Image.Image | np.ndarray, reason: str
) -> bool:
    """Whether a sentence names a clause that truly failed (any of them, in the words of ``judge``'s
    reasons)."""
    a = _account(spec, picture)
    if a.correct:
        return False
    true = [f"{what}, {why}" if why.startswith("not") else why for what, why in a.failures if why]
    return any(
        reason.strip().rstrip(".").endswith(t) for t in true or ["something else in the picture"]
    )


def _several(name: str, n: int) -> str:
    return (
        f"there {'is' if n == 1 else 'are'} {NUMBERS.get(n, 'more')} "
        f"{name if n == 1 else plurals()[name]}"
    )


def _clause(
    spec, clause: Clause, found, earlier, atoms
) -> tuple[bool, list[Detection], tuple[str, str]]:
    """One include clause: does it hold, its equally sure boxes (none when it fails, so no position
    target), (what, why not)."""
    what = phrase(clause.name, clause.count, clause.color)
    every, wanted = found, {c.color for c in spec.include if c.name == clause.name}
    found = sorted(found, key=lambda d: (-round(d.confidence, 2), d.color != clause.color))[
        : clause.count
    ]
    atoms.extend(found[i].confidence if i < len(found) else 0.0 for i in range(clause.count))
    enough = len(found) == clause.count
    if clause.color:
        atoms.append(sum(d.color == clause.color for d in found) / clause.count)
    if clause.position:
        atoms.append(0.0)
    if not enough:
        if spec.tag == "counting" and found:
            return False, [], (_several(clause.name, len(found)), f"not {NUMBERS[clause.count]}")
        return (
            False,
            [],
            ("", f"no {clause.name}" if not clause.color else f"no {clause.color} {clause.name}"),
        )
    if clause.color and any(d.color != clause.color for d in found):
        return False, [], ("", f"no {clause.color} {clause.name}")
    # among equally sure boxes GenEval's choice is chance: a star in every colour must not pass as
    # the red one
    rivals = [
        d
        for d in every
        if clause.color and d.color not in wanted and d.confidence > found[-1].confidence - 0.02
    ]
    if rivals:
        return False, [], ("", f"there is also {phrase(clause.name, 1, rivals[0].color)}")
    # for the same reason a relation must hold between all of the equally sure boxes: a star on
    # either side is not left
    sure = [d for d in every if d.confidence > found[-1].confidence - 0.02]
    if clause.position:
        relation, target = clause.position
        others = earlier[target]
        holds = bool(others) and all(
            relation in relations(a.box, b.box) for a in sure for b in others
        )
        atoms[-1] = float(holds)
        if not holds:
            other = spec.include[target].name
            return (
                False,
                [],
                ("", f"the {clause.name} is not {relation} the {other}" if others else ""),
            )
    return True, sure, (what, "")


def _sentence(correct: bool, failures, held, spec: Spec) -> str:
    """ "there is a red star but no blue cat": at most one failure is named, with what does hold."""
    there = [what for what, _ in held if what]
    if correct:
        return (
            f"there is {listing(there)}"
            if spec.include[0].count == 1
            else f"there are {listing(there)}"
        )
    failures = [(what, why) for what, why in failures if why]
    if not failures:
        return "there is something else in the picture"
    what, why = failures[0]
    if why.startswith("not"):
        return f"{what}, {why}"
    if why.startswith("the"):
        return why
    return f"there is {there[0]} but {why}" if there else f"there is {why}"
