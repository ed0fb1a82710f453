"""Where objects go so that relations between them hold and as few as can be leave their places."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import combinations, permutations

import numpy as np
from scipy.optimize import linear_sum_assignment

from secondlook.mini.world.scene import CORNERS, Thing, box, layouts, relations

_CORNER_INDEX = {corner: i for i, corner in enumerate(CORNERS)}


@cache
def _relations_at(a: str, b: str, corner_a: int, corner_b: int) -> frozenset[str]:
    box_a, box_b = box(Thing(*CORNERS[corner_a], a, "")), box(Thing(*CORNERS[corner_b], b, ""))
    return frozenset(relations(box_a, box_b))


def arrange(
    names: tuple[str, ...],
    corners: list[tuple[int, int] | None],
    near: list[tuple[int, int] | None],
    asked: list[tuple[int, str, int]],
) -> list[tuple[int, int]]:
    """A corner for every object: as few as possible leave ``corners``, and those without one come
    near theirs of ``near``. Raises ValueError where no arrangement satisfies the relations."""
    indices = [None if corner is None else _CORNER_INDEX[corner] for corner in corners]
    movable = [i for i, index in enumerate(indices) if index is not None]
    # objects of a relation are moved before others
    related = {i for a, _, b in asked for i in (a, b)}
    movable.sort(key=lambda i: i not in related)
    for num_moved in range(len(movable) + 1):
        best: tuple[float, list[int]] | None = None
        for moved in combinations(movable, num_moved):
            found = _assign(names, indices, near, asked, set(moved))
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        if best is not None:
            return [CORNERS[i] for i in best[1]]
    raise ValueError(f"no arrangement of {', '.join(names)} satisfies what is asked")


def _assign(
    names: tuple[str, ...],
    indices: list[int | None],
    near: list[tuple[int, int] | None],
    asked: list[tuple[int, str, int]],
    moved: set[int],
) -> tuple[float, list[int]] | None:
    """The cheapest layout in which all but the ``moved`` keep their corners: (distance of the new
    and moved ones from where they should be, a corner's index for each)."""
    fixed = {i: index for i, index in enumerate(indices) if index is not None and i not in moved}
    open_slots = [i for i in range(len(names)) if i not in fixed]
    all_layouts = layouts(len(names))
    # (layouts,) those that have all of the fixed corners
    fits = np.ones(len(all_layouts), bool)
    for index in fixed.values():
        fits &= (all_layouts == index).any(-1)
    best: tuple[float, list[int]] | None = None
    related = {i for a, _, b in asked for i in (a, b)}
    # those in a relation are tried everywhere, the others get what is left at the least cost
    tried = [i for i in open_slots if i in related]
    others = [i for i in open_slots if i not in related]
    wishes = {}
    for i in open_slots:
        old = indices[i]
        wishes[i] = near[i] if old is None else CORNERS[old]
    for layout in all_layouts[fits].tolist():
        rest = [corner for corner in layout if corner not in set(fixed.values())]
        if len(rest) != len(open_slots):
            continue
        for choice in permutations(rest, len(tried)):
            corner_of = fixed | dict(zip(tried, choice, strict=True))
            if not _all_hold(names, corner_of, asked):
                continue
            cost = sum(_distance(wishes[i], corner_of[i]) for i in tried)
            if best is not None and cost >= best[0]:
                continue
            left = [corner for corner in rest if corner not in choice]
            costs = np.array([[_distance(wishes[i], corner) for corner in left] for i in others])
            rows, columns = linear_sum_assignment(costs.reshape(len(others), len(left)))
            for row, column in zip(rows, columns, strict=True):
                corner_of[others[row]] = left[column]
                cost += costs[row, column]
            if best is None or cost < best[0]:
                best = (cost, [corner_of[i] for i in range(len(names))])
            if best[0] == 0:
                return best
    return best


def _distance(wish: tuple[int, int] | None, corner: int) -> float:
    """Pixels, up or down and across, between where an object should be and a corner."""
    if wish is None:
        return 0.0
    y, x = CORNERS[corner]
    return float(abs(y - wish[0]) + abs(x - wish[1]))


def _all_hold(
    names: tuple[str, ...], corner_of: dict[int, int], asked: Iterable[tuple[int, str, int]]
) -> bool:
    for a, relation, b in asked:
        if relation not in _relations_at(names[a], names[b], corner_of[a], corner_of[b]):
            return False
    return True
