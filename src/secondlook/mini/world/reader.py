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
from itertools import product

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
MIN_PIXELS = 40  # of one colour in a window, fewer are no object
_NAMES = tuple(pictograms())
_TEMPLATES = np.stack(list(pictograms().values())).astype(np.float32)  # (objects, 16, 16)
_HALF = CELL // 2
_QUADRANTS = (
    np.s_[..., :_HALF, :_HALF],
    np.s_[..., :_HALF, _HALF:],
    np.s_[..., _HALF:, :_HALF],
    np.s_[..., _HALF:, _HALF:],
)
_PALETTE = np.array([*COLORS.values(), BACKGROUND], np.float32)  # (colours + 1, 3)


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
    color_labels = _color_labels(image)
    foreground = color_labels != len(COLORS)  # (48, 48), also pixels without a colour
    objects: list[Detection] = []
    corners: list[tuple[int, int]] = []
    for worst_iou, name, color, y, x in sorted(_candidates(color_labels, foreground), reverse=True):
        if _near_any(y, x, corners):
            continue
        corners.append((y, x))
        confidence = min(1.0, (worst_iou - LOWEST) / (FULL - LOWEST))
        objects.append(Detection(name, color, box(Thing(y, x, name, color)), confidence))
    for y, x in corners:
        foreground[y : y + CELL, x : x + CELL] = False
    return Reading(tuple(objects), int(foreground.sum()))


def _color_labels(image: Image.Image | np.ndarray) -> np.ndarray:
    """(48, 48): of each pixel the index of its colour; the last is background, -1 none."""
    pixels = to_canvas(image).astype(np.float32)
    distances = np.linalg.norm(pixels[:, :, None] - _PALETTE, axis=-1)  # (48, 48, palette)
    color_labels = distances.argmin(-1)
    color_labels[distances.min(-1) > FAR] = -1
    return color_labels


def foreground_of(image: Image.Image | np.ndarray) -> np.ndarray:
    """(48, 48) bool: the pixels that are not background."""
    return _color_labels(image) != len(COLORS)


def _candidates(
    color_labels: np.ndarray, foreground: np.ndarray
) -> list[tuple[float, str, str, int, int]]:
    """(IoU, class, colour, y, x) of every place where a pictogram fits better than LOWEST; the same
    object is found at several neighbouring places."""
    foreground_windows = sliding_window_view(foreground, (CELL, CELL))  # (33, 33, 16, 16)
    candidates: list[tuple[float, str, str, int, int]] = []
    for color_index, color in enumerate(COLORS):
        color_mask = color_labels == color_index
        if color_mask.sum() < MIN_PIXELS:
            continue
        color_windows = sliding_window_view(color_mask, (CELL, CELL))
        ys, xs = np.nonzero(color_windows.sum((-1, -2)) >= MIN_PIXELS)  # windows worth a look
        worst_ious = _worst_quadrant(color_windows[ys, xs], foreground_windows[ys, xs])
        for window, index in np.argwhere(worst_ious > LOWEST).tolist():
            y, x = int(ys[window]), int(xs[window])
            candidates.append((float(worst_ious[window, index]), _NAMES[index], color, y, x))
    return candidates


def _near_any(y: int, x: int, corners: list[tuple[int, int]]) -> bool:
    """Whether a cell at (y, x) lies less than half a cell from one with a higher IoU."""
    for y_other, x_other in corners:
        if abs(y - y_other) < CELL // 2 and abs(x - x_other) < CELL // 2:
            return True
    return False


def _worst_quadrant(colored: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """IoU (n, objects) of windows (n, 16, 16) with every pictogram, the smallest of the four
    quadrants'."""
    worst_ious = np.ones((len(colored), len(_NAMES)), np.float32)
    for quadrant in _QUADRANTS:
        template = _TEMPLATES[quadrant].reshape(len(_NAMES), _HALF**2)  # (objects, 64)
        pixels = colored[quadrant].reshape(len(colored), _HALF**2).astype(np.float32)  # (n, 64)
        intersections = pixels @ template.T  # (n, objects)
        unions = foreground[quadrant].sum((-1, -2))[:, None] + template.sum(1) - intersections
        # a quadrant that is empty in both fits
        np.minimum(
            worst_ious,
            np.where(unions > 0, intersections / np.maximum(unions, 1), 1.0),
            out=worst_ious,
        )
    return worst_ious


def reading_of(scene: Scene) -> Reading:
    """What a perfect reader sees in a scene's picture."""
    detections = []
    for thing in scene.things:
        detections.append(Detection(thing.name, thing.color, box(thing), 1.0))
    return Reading(tuple(detections))


def scene_of(reading: Reading) -> Scene:
    """The scene whose picture would be read so (for pictures whose objects are all in their
    cells)."""
    things = []
    for detection in reading.objects:
        left, top, _, _ = detection.box
        rows, cols = np.nonzero(pictograms()[detection.name])
        y, x = top - int(rows.min()), left - int(cols.min())  # from the box to the cell's corner
        things.append(Thing(y, x, detection.name, detection.color))
    return Scene.of(things)


@dataclass(frozen=True)
class _Account:
    """What a picture has of a specification: S's atoms, whether all holds, what fails and what
    holds (what, why not)."""

    atoms: list[float]
    correct: bool
    failures: list[tuple[str, str]]
    held: list[tuple[str, str]]


@dataclass(frozen=True)
class _ClauseResult:
    """Whether an include clause holds, its equally sure boxes (none when it fails, so that it is no
    position's target), and what is there or why it fails (what, why not)."""

    holds: bool
    boxes: list[Detection]
    words: tuple[str, str]


def _fails(why: str, what: str = "") -> _ClauseResult:
    return _ClauseResult(False, [], (what, why))


def threshold_of(spec: Spec) -> float:
    """Confidence above which an object counts: GenEval is stricter where it counts."""
    return COUNTING_THRESHOLD if spec.tag == "counting" else THRESHOLD


def _account(spec: Spec, picture: Reading | Scene | Image.Image | np.ndarray) -> _Account:
    if isinstance(picture, Scene):
        picture = reading_of(picture)
    elif not isinstance(picture, Reading):
        picture = read(picture)
    threshold = threshold_of(spec)
    boxes_of_name: dict[str, list[Detection]] = {}
    for detection in sorted(picture.objects, key=lambda detection: -detection.confidence):
        kept_boxes = boxes_of_name.setdefault(detection.name, [])
        if detection.confidence > threshold and len(kept_boxes) < TOP:
            kept_boxes.append(detection)
    atoms: list[float] = []
    all_hold = picture.leftover <= LEFTOVER
    failed_phrases: list[tuple[str, str]] = []
    held_phrases: list[tuple[str, str]] = []
    boxes_of_clauses: list[list[Detection]] = []
    for clause in spec.include:
        of_class = boxes_of_name.get(clause.name, [])
        clause_result = _clause(spec, clause, of_class, boxes_of_clauses, atoms)
        boxes_of_clauses.append(clause_result.boxes)
        all_hold &= clause_result.holds
        if clause_result.holds:
            held_phrases.append(clause_result.words)
        else:
            failed_phrases.append(clause_result.words)
    for clause in spec.exclude:
        num_found = 0
        for detection in boxes_of_name.get(clause.name, []):
            num_found += clause.color in (None, detection.color)
        few_enough = num_found < clause.count
        atoms.append(float(few_enough))
        if not few_enough:
            all_hold = False
            failed_phrases.append(
                (_several(clause.name, num_found), f"not {NUMBERS.get(clause.count - 1, 'none')}")
            )
            held_phrases = []
    return _Account(atoms, bool(all_hold), failed_phrases, held_phrases)


def judge(spec: Spec, picture: Reading | Scene | Image.Image | np.ndarray) -> Verdict:
    """GenEval's verdict on a picture, its soft score and its reason.

    S is 0.45 times the mean over atoms (each object asked for, its colour, the exact count where
    asked, each relation; an object counts with its confidence) plus 0.55 for a correct verdict:
    below 0.5, the paper's threshold for negatives, exactly when the picture is wrong.
    """
    account = _account(spec, picture)
    score = 0.45 * float(np.mean(account.atoms)) + 0.55 * account.correct
    return Verdict(account.correct, score, _sentence(account, spec))


def holds(spec: Spec, picture: Reading | Scene) -> bool:
    """Whether all that a specification says of its objects is true, whatever else is there."""
    reading = reading_of(picture) if isinstance(picture, Scene) else picture
    return _account(spec, Reading(reading.objects)).correct


def names_a_failure(
    spec: Spec, picture: Reading | Scene | Image.Image | np.ndarray, reason: str
) -> bool:
    """Whether a sentence names a clause that truly failed (any of them, in the words of ``judge``'s
    reasons)."""
    account = _account(spec, picture)
    if account.correct:
        return False
    true_reasons = []
    for what, why in account.failures:
        if why:
            true_reasons.append(f"{what}, {why}" if why.startswith("not") else why)
    if not true_reasons:
        true_reasons = ["something else in the picture"]
    return reason.strip().rstrip(".").endswith(tuple(true_reasons))


def _several(name: str, n: int) -> str:
    """ "there is one star", "there are three cats"."""
    if n == 1:
        return f"there is {NUMBERS[n]} {name}"
    return f"there are {NUMBERS.get(n, 'more')} {plurals()[name]}"


def _clause(
    spec: Spec,
    clause: Clause,
    of_class: list[Detection],
    boxes_of_clauses: list[list[Detection]],
    atoms: list[float],
) -> _ClauseResult:
    """One include clause against the boxes of its class, surest first. Appends to ``atoms``: each
    object's confidence, then its colour's and its position's where they are asked for."""

    def by_rounded_confidence(detection: Detection) -> tuple[float, bool]:
        # of those that are as sure the right colour comes first
        return -round(detection.confidence, 2), detection.color != clause.color

    chosen_boxes = sorted(of_class, key=by_rounded_confidence)[: clause.count]
    num_missing = clause.count - len(chosen_boxes)
    atoms += [detection.confidence for detection in chosen_boxes]
    atoms += [0.0] * num_missing
    num_right_color = sum(detection.color == clause.color for detection in chosen_boxes)
    if clause.color:
        atoms.append(num_right_color / clause.count)
    if clause.position:
        atoms.append(0.0)  # until it is known to hold
    if num_missing and chosen_boxes and clause.count > 1:
        return _fails(f"not {NUMBERS[clause.count]}", _several(clause.name, len(chosen_boxes)))
    if clause.color and num_right_color < clause.count:
        return _fails(f"no {clause.color} {clause.name}")
    if num_missing:
        return _fails(f"no {clause.name}")
    lowest_confidence = chosen_boxes[-1].confidence - 0.02
    equally_sure = [box for box in of_class if box.confidence > lowest_confidence]
    if clause.color:
        # among equally sure boxes GenEval's choice is chance: a star in every colour must not pass
        # as the red one
        same_class = [other for other in spec.include if other.name == clause.name]
        wanted_colors = {other.color for other in same_class}
        for detection in equally_sure:
            if detection.color not in wanted_colors:
                return _fails(f"there is also {phrase(clause.name, 1, detection.color)}")
    if clause.position:
        # for the same reason a relation must hold between all of the equally sure boxes: a star on
        # either side is not left
        relation, other_index = clause.position
        other_boxes = boxes_of_clauses[other_index]
        if not other_boxes:
            return _fails("")  # the other clause has said why
        for detection, other_box in product(equally_sure, other_boxes):
            if relation not in relations(detection.box, other_box.box):
                other_name = spec.include[other_index].name
                return _fails(f"the {clause.name} is not {relation} the {other_name}")
        atoms[-1] = 1.0
    return _ClauseResult(True, equally_sure, (phrase(clause.name, clause.count, clause.color), ""))


def _sentence(account: _Account, spec: Spec) -> str:
    """ "there is a red star but no blue cat": at most one failure is named, with what does hold."""
    held_texts = [what for what, _ in account.held if what]
    if account.correct:
        verb = "is" if spec.include[0].count == 1 else "are"
        return f"there {verb} {listing(held_texts)}"
    named_failures = [(what, why) for what, why in account.failures if why]
    if not named_failures:
        return "there is something else in the picture"
    what, why = named_failures[0]
    if why.startswith("not"):
        return f"{what}, {why}"
    if why.startswith("the"):
        return why
    return f"there is {held_texts[0]} but {why}" if held_texts else f"there is {why}"
