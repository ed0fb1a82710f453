"""Who has which colour: prompts about a part of a scene, scenes in which two objects have swapped
their colours, and prompts whose clauses stand in another order.

Most wrong pictures of a trained model are of this kind: the flag has the star's colour. Whether "a
white flag" is there then depends on no colour and no class alone. Where prompts name objects in the
order in which they are drawn a judge learns to compare the first clause with the first object, the
second with the second, and nothing else (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secondlook.mini.world import compound
from secondlook.mini.world.language import (
    NUMBERS,
    Spec,
    listing,
    phrase,
    scene_held_out,
    spec_held_out,
)
from secondlook.mini.world.reader import judge
from secondlook.mini.world.scene import Scene


def swapped(
    rng: np.random.Generator, scene: Scene, num_clauses: int
) -> tuple[Spec, Scene, tuple[str, str]] | None:
    """A prompt for so many of a scene's classes, with their colours and counts, in the scene's
    order; the scene after two of its objects have swapped their colours, which it fails; and the
    two's classes, both of which the prompt names where it has more than one clause.

    The two are the only ones of their classes, so that the picture alone gives nothing away.
    Neither the prompt nor the scene is held out. None where there is no such choice.
    """
    things_of_name = compound.things_of_name(scene)
    single_names, other_names = [], []
    for name, things in things_of_name.items():
        if len(things) == 1:
            single_names.append(name)
        elif len(things) in NUMBERS and len({thing.color for thing in things}) == 1:
            other_names.append(name)
    if len(single_names) < 2:
        return None
    first, second = (single_names[i] for i in rng.choice(len(single_names), 2, replace=False))
    a, b = things_of_name[first][0], things_of_name[second][0]
    named = {first} if num_clauses == 1 else {first, second}
    further_names = [name for name in single_names + other_names if name not in (first, second)]
    num_further = num_clauses - len(named)
    if a.color == b.color or len(further_names) < num_further:
        return None
    named |= {further_names[i] for i in rng.permutation(len(further_names))[:num_further]}
    wordings = []
    for name, things in things_of_name.items():
        if name in named:
            wordings.append(phrase(name, len(things), things[0].color))
    spec = compound.parse(f"a photo of {listing(wordings)}")
    changed_things = []
    for thing in scene.things:
        color = {first: b.color, second: a.color}.get(thing.name, thing.color)
        changed_things.append(replace(thing, color=color))
    wrong = Scene.of(changed_things)
    if spec_held_out(spec) or scene_held_out(wrong) or judge(spec, wrong).correct:
        return None
    return spec, wrong, (first, second)


def _parts(spec: Spec) -> tuple[list[str], list[str]]:
    """What a prompt asks for, and what must be absent."""
    parts = compound.parts_of(spec.prompt)
    present = [part for part in parts if not part.startswith("no ")]
    return present, parts[len(present) :]


def _prompt_of(parts: list[str], spec: Spec) -> Spec:
    """The prompt that lists ``parts``, which are ``spec``'s."""
    return replace(compound.parse(f"a photo of {listing(parts)}"), tag=spec.tag)


def reordered(rng: np.random.Generator, spec: Spec) -> Spec:
    """The same prompt with its parts in another order, or as it is where it has one part. What must
    be absent stays behind them."""
    parts, absent = _parts(spec)
    shuffled_parts = parts
    while len(parts) > 1 and shuffled_parts == parts:  # parts differ from each other
        shuffled_parts = [parts[i] for i in rng.permutation(len(parts))]
    return _prompt_of(shuffled_parts + absent, spec)


def exchanged(spec: Spec, names: tuple[str, str]) -> Spec:
    """The same prompt, of clauses without relations, with those of two classes in each other's
    places."""
    i, j = (
        next(i for i, clause in enumerate(spec.include) if clause.name == name) for name in names
    )
    parts, absent = _parts(spec)
    parts[i], parts[j] = parts[j], parts[i]
    return _prompt_of(parts + absent, spec)
