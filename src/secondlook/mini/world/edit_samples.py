"""Edits drawn at random: those to learn from, mini-PIE's, and scenes that an edit may be mistaken
for.

What a seed gives depends on the order in which numbers are drawn from ``rng``. Some are drawn also
for kinds of edits that do not use them, so that this order is one for all kinds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secondlook.errors import InputError
from secondlook.mini.world.edits import KINDS, PLACES, Edit, judge, named, parse
from secondlook.mini.world.language import SEED, check_split, phrase, scene_held_out
from secondlook.mini.world.scene import COLORS, OBJECTS, STEP, Scene, Thing, place

SOURCES = (0.15, 0.35, 0.5)
"""Shares of one, two and three objects in the sources that training has."""
_COLORS = tuple(COLORS)  # to be indexed


def propose(rng: np.random.Generator, kind: str, source: Scene) -> Edit | None:
    """An edit of a scene, or None where a random choice cannot be carried out."""
    things = source.things
    thing = things[rng.integers(len(things))]
    name = named(thing, source, colored=bool(rng.random() < 0.5)) or named(
        thing, source, colored=True
    )
    # all are drawn for every kind, so that each proposal takes as many numbers from ``rng``
    color, other_name = _any_color(rng), _any_object(rng)
    place_name = list(PLACES)[rng.integers(len(PLACES))]
    instruction_of_kind = {
        "recolour": f"make {name} {color}",
        "replace": f"replace {name} with {phrase(other_name, 1, color)}",
        "add": f"add {phrase(other_name, 1, color)} at the {place_name}",
        "remove": f"remove {name}",
        "move": f"move {name} to the {place_name}",
    }
    instruction = instruction_of_kind[kind]
    if kind == "add":
        if len(things) > 3:
            return None
    elif name is None or (kind == "replace" and other_name == thing.name):
        return None
    try:
        return parse(instruction, source)
    except InputError:
        return None


def _any_color(rng: np.random.Generator) -> str:
    return _COLORS[rng.integers(len(_COLORS))]


def _any_object(rng: np.random.Generator) -> str:
    return OBJECTS[rng.integers(len(OBJECTS))]


def _scattered(rng: np.random.Generator, n: int) -> Scene:
    """``n`` different objects anywhere, in any colours."""
    names = [OBJECTS[i] for i in rng.choice(len(OBJECTS), size=n, replace=False)]
    things = []
    for (y, x), name in zip(place(rng, n), names, strict=True):
        things.append(Thing(y, x, name, _any_color(rng)))
    return Scene.of(things)


def edit_lesson(rng: np.random.Generator, shares: dict[str, float] = KINDS) -> Edit:
    """An edit to learn from: neither its source nor its target shows a held-out composition.

    How many objects the source has is drawn first: few scenes of three show nothing that is held
    out, and what has to be learned is which of them is meant.
    """
    edit_kinds, weights = list(shares), np.array(list(shares.values()))
    while True:
        edit_kind = edit_kinds[rng.choice(len(edit_kinds), p=weights / weights.sum())]
        n = 1 + int(rng.choice(len(SOURCES), p=SOURCES))
        if edit_kind == "remove" and n == 1:  # nothing would be left
            continue
        for _ in range(1000):
            scene = _scattered(rng, n)
            if scene_held_out(scene):
                continue
            edit = propose(rng, edit_kind, scene)
            if edit and not scene_held_out(edit.target):
                return edit


def benchmark(rows_per_kind: int = 80, split: str = "held-out") -> tuple[Edit, ...]:
    """Mini-PIE: ``rows_per_kind`` edits of each kind, drawn with seed 43, whose targets are
    held-out compositions (``split`` "seen": of those that training has). Raises InputError for
    another split."""
    check_split(split)
    rng = np.random.default_rng(SEED)
    benchmark_rows: list[Edit] = []
    for kind in KINDS:
        distinct_edits: dict[tuple[str, Scene], Edit] = {}
        while len(distinct_edits) < rows_per_kind:
            edit = propose(rng, kind, _scattered(rng, int(rng.integers(1, 4))))
            if edit is None:
                continue
            if split == "held-out":
                belongs_to_split = scene_held_out(edit.target)  # its source may be held out or not
            else:
                belongs_to_split = not scene_held_out(edit.target) and not scene_held_out(
                    edit.source
                )
            if belongs_to_split:
                distinct_edits.setdefault((edit.instruction, edit.source), edit)
        benchmark_rows += distinct_edits.values()
    return tuple(benchmark_rows)


def wrong_edit(rng: np.random.Generator, edit: Edit) -> Scene:
    """A scene that an edit may be mistaken for: not followed (nothing or the wrong thing done), or
    with something else changed. Never held out; about as many of either."""
    while True:
        mistaken_scene = _unfollowed(rng, edit) if rng.random() < 0.5 else _spoilt(rng, edit)
        is_usable = (
            mistaken_scene
            and mistaken_scene.things
            and mistaken_scene.valid()
            and not scene_held_out(mistaken_scene)
        )
        if mistaken_scene and is_usable and not judge(edit, mistaken_scene).correct:
            return mistaken_scene
        if rng.random() < 0.02:  # for edits of which hardly any mistake is possible
            return edit.source


def _unfollowed(rng: np.random.Generator, edit: Edit) -> Scene | None:
    """Nothing was done, or it was done with another object, colour, class or place."""
    if rng.random() < 0.25:
        return edit.source
    if rng.random() < 0.4:
        other_edit = propose(rng, edit.kind, edit.source)
        return other_edit.target if other_edit else None
    things = list(edit.target.things)
    if not edit.new:
        return None
    new_thing = edit.new[0]
    things.remove(new_thing)
    y, x = list(PLACES.values())[rng.integers(len(PLACES))]
    wrongly_moved = replace(new_thing, y=y, x=x)
    # the mistakes of all kinds are drawn, in this order, whichever kind the edit is
    wrongly_recoloured = replace(new_thing, color=_any_color(rng))
    if rng.random() < 0.5:
        wrongly_replaced = replace(new_thing, color=_any_color(rng))
    else:
        wrongly_replaced = replace(new_thing, name=_any_object(rng))
    wrongly_added = (
        replace(new_thing, color=_any_color(rng)),
        replace(new_thing, name=_any_object(rng)),
        wrongly_moved,
    )
    mistake_of_kind = {
        "recolour": wrongly_recoloured,
        "replace": wrongly_replaced,
        "add": wrongly_added[rng.integers(3)],
        "move": wrongly_moved,
    }
    return Scene.of([*things, mistake_of_kind[edit.kind]])


def _spoilt(rng: np.random.Generator, edit: Edit) -> Scene | None:
    """Followed, with another object changed, gone or added."""
    things = list(edit.target.things)
    y, x = (STEP * rng.integers(5, size=2)).tolist()  # a corner of the lattice
    if not edit.kept or rng.random() < 0.2:
        if len(things) > 3:
            return None
        intruder = Thing(y, x, _any_object(rng), _any_color(rng))
        return Scene.of([*things, intruder])
    kept_thing = edit.kept[rng.integers(len(edit.kept))]
    things.remove(kept_thing)
    match rng.integers(4):
        case 0:
            things.append(replace(kept_thing, color=_any_color(rng)))
        case 1:
            things.append(replace(kept_thing, name=_any_object(rng)))
        case 2:
            things.append(replace(kept_thing, y=y, x=x))
        # 3: it is gone
    return Scene.of(things)
