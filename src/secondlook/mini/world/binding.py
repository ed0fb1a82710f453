"""Who has which colour: questions and prompts about a part of a scene, prompts whose clauses stand
in another order, and scenes whose own colours and classes are mixed up.

A wrong picture of a trained model is nearly always of this kind: the flag has the star's colour.
Whether "a white flag" is there then depends on no colour and no class alone. Where prompts name
objects in the order in which they are drawn a judge learns to compare the first clause with the
first object, the second with the second, and nothing else (docs/LOG.md).
"""

from __future__ import annotations

import numpy as np

from secondlook.mini.world import compound, samples
from secondlook.mini.world.language import NUMBERS, Spec, listing, phrase, scene_held_out
from secondlook.mini.world.reader import judge
from secondlook.mini.world.scene import Scene, Thing

MIX_UPS = ("swap colors", "swap colors", "borrow color", "borrow color", "borrow name")
"""Changes of ``samples`` after which a scene holds the same colours or classes as before."""
TRIES = 20


def mixed_up(
    rng: np.random.Generator, scene: Scene, spec: Spec, changes: tuple[str, ...] = MIX_UPS
) -> Scene | None:
    """A scene that fails ``spec`` after one of ``changes``. Not held out. None where ``TRIES``
    changes led to none."""
    for _ in range(TRIES):
        things = samples.changed_by(rng, list(scene.things), changes, compound.MAX_THINGS)
        changed_scene = Scene.of(things)
        is_allowed = changed_scene.valid() and not scene_held_out(changed_scene)
        if is_allowed and not judge(spec, changed_scene).correct:
            return changed_scene
    return None


def part_of(rng: np.random.Generator, scene: Scene, num_parts: int) -> Spec | None:
    """A prompt for so many of a scene's classes, with their colours and counts, in the scene's
    order. None where there are not so many whose objects have one colour."""
    things_of_name: dict[str, list[Thing]] = {}  # in reading order
    for thing in scene.things:
        things_of_name.setdefault(thing.name, []).append(thing)
    wordings = []
    for name, things in things_of_name.items():
        if len({thing.color for thing in things}) == 1 and len(things) in NUMBERS:
            wordings.append(phrase(name, len(things), things[0].color))
    if len(wordings) < num_parts:
        return None
    picks = sorted(rng.choice(len(wordings), num_parts, replace=False))
    spec = compound.parse(f"a photo of {listing([wordings[i] for i in picks])}")
    return spec if judge(spec, scene).correct else None


def reordered(rng: np.random.Generator, spec: Spec) -> Spec:
    """The same prompt with its parts in another order, or as it is where it has one part (a
    relation is one)."""
    parts = spec.prompt.removeprefix("a photo of ").replace(" and ", ", ").split(", ")
    shuffled_parts = [parts[i] for i in rng.permutation(len(parts))]
    return compound.parse(f"a photo of {listing(shuffled_parts)}")


def question(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """ "is there a white flag?" of a scene, and its answer: as often Yes as No, and a No is to a
    class of the scene in the colour of another of its objects, where there is such a pair."""
    things = scene.things
    thing = things[rng.integers(len(things))]
    if rng.random() < 0.5:
        return f"is there {phrase(thing.name, 1, thing.color)}?", "Yes"
    shown = {(other.color, other.name) for other in things}
    absent = []
    for color in sorted({color for color, _ in shown}):
        for name in sorted({name for _, name in shown}):
            if (color, name) not in shown:
                absent.append((color, name))
    if not absent:  # every colour is on every class
        return samples.question(rng, scene, there=1.0)
    color, name = absent[rng.integers(len(absent))]
    return f"is there {phrase(name, 1, color)}?", "No"
