"""What the miniature is taught from: scenes that satisfy a prompt, near misses, descriptions and
questions.

Nothing here shows a held-out composition, neither in a picture nor in words
(`language.scene_held_out`, `spec_held_out`). Objects are named in reading order, the order in which
their codes are drawn: with a random order the first code of a picture must mix "red star" and "blue
cat" without the crossed pairs, which the image head learns last (docs/LOG.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from secondlook.mini.world import compound
from secondlook.mini.world.language import (
    NUMBERS,
    Clause,
    Spec,
    listing,
    phrase,
    plurals,
    position_spec,
    scene_held_out,
    spec,
    spec_held_out,
)
from secondlook.mini.world.reader import judge
from secondlook.mini.world.scene import (
    COLORS,
    CORNERS,
    OBJECTS,
    OPPOSITE,
    RELATIONS,
    Scene,
    Thing,
    box,
    place,
    relations,
)

KINDS = {
    "single": 0.03,
    "colored": 0.12,
    "two": 0.08,
    "counting": 0.11,
    "counting_colored": 0.04,
    "position": 0.17,
    "position_colored": 0.09,
    "color_attr": 0.26,
    "three_colored": 0.10,
    compound.TAG: 0.0,
}
"""Shares of the kinds of prompts. Compound ones are asked for by name."""
ALONE = {kind: KINDS[kind] for kind in ("single", "colored")}
"""The kinds whose scenes hold one object."""
_COLORS = tuple(COLORS)  # to be indexed
_CHANGES = ("color", "name", "swap colors", "swap places", "drop", "add")
_AIMED = {
    "single_object": ("name",),
    "two_object": ("name", "drop"),
    "counting": ("drop", "add"),
    "colors": ("color",),
    "position": ("swap places", "move"),
    "color_attr": ("swap colors",),
    compound.TAG: (
        *("swap colors", "swap colors", "borrow color", "borrow color", "borrow name"),
        *("color", "name", "swap places", "move", "drop", "add"),
    ),
}
"""The changes that attack what a task's prompts ask for. Those of compound prompts often mix up
what is there, as the pictures of a trained model do."""
_MISTAKES = {
    "swap colors": 0.24,
    "borrow color": 0.26,
    "color": 0.08,
    "name": 0.12,
    "borrow name": 0.06,
    "swap places": 0.06,
    "move": 0.06,
    "drop": 0.08,
    "add": 0.04,
}
"""Shares of the mistakes in wrong pictures, about as in a base's own of compound prompts
(docs/LOG.md): an object most often has another one's colour."""
_TRIES = 12
"""Of a mistake's kind, before the scene is left as it was."""


def sample_scene(
    rng: np.random.Generator, shares: dict[str, float] = KINDS, objects: int = len(OBJECTS)
) -> tuple[Spec, Scene]:
    """A prompt and a scene that satisfies it, neither held out; ``shares`` are those of the kinds
    of prompts, of the first ``objects`` classes."""
    prompt_kinds, weights = list(shares), np.array(list(shares.values()))
    while True:
        prompt_kind = prompt_kinds[rng.choice(len(prompt_kinds), p=weights / weights.sum())]
        proposal = _propose(rng, prompt_kind, objects)
        if proposal is None:
            continue
        proposed_spec, scene = proposal
        if not spec_held_out(proposed_spec) and not scene_held_out(scene):
            return proposed_spec, scene


def _propose(rng: np.random.Generator, kind: str, num_classes: int) -> tuple[Spec, Scene] | None:
    """A prompt of a kind and a scene for it, held out or not; None where a random choice cannot be
    carried out."""
    if kind == compound.TAG:
        compound_prompt, scene = compound.sample_compound(rng)
        return compound_prompt.spec, scene
    num_objects = {"single": 1, "colored": 1, "three_colored": 3}.get(kind, 2)
    object_names = [OBJECTS[i] for i in rng.choice(num_classes, num_objects, replace=False)]
    repeat_colors = kind in ("two", "position")  # elsewhere colours tell the objects apart
    color_picks = rng.choice(len(_COLORS), num_objects, replace=repeat_colors)
    object_colors = [_COLORS[i] for i in color_picks]
    says_colors = kind.endswith("colored") or kind == "color_attr"
    if kind.startswith("counting"):
        name, color = object_names[0], object_colors[0]
        count = int(rng.integers(2, 5))
        scene = Scene.of(Thing(y, x, name, color) for y, x in place(rng, count))
        clause = Clause(name, count, color if says_colors else None)
        return spec("counting", clause), scene
    corners = place(rng, num_objects)
    things = []
    for i, (y, x) in enumerate(corners):
        things.append(Thing(y, x, object_names[i], object_colors[i]))
    scene = Scene.of(things)
    if kind.startswith("position"):
        position_prompt = _position_prompt(rng, scene, says_colors)
        return (position_prompt, scene) if position_prompt else None
    tag_of_kind = {"single": "single_object", "colored": "colors", "two": "two_object"}
    clauses = []
    for thing in scene.things:
        clauses.append(Clause(thing.name, 1, thing.color if says_colors else None))
    return spec(tag_of_kind.get(kind, "color_attr"), *clauses), scene


def _position_prompt(rng: np.random.Generator, scene: Scene, says_colors: bool) -> Spec | None:
    """A relation that holds between a scene's two objects, in either wording; None where none
    holds."""
    a, b = scene.things
    # reading order: the first is the left or the upper one
    holding_relations = relations(box(a), box(b)) & {"left of", "above"}
    if not holding_relations:
        return None
    relation = sorted(holding_relations)[rng.integers(len(holding_relations))]
    if rng.random() < 0.5:
        a, b, relation = b, a, OPPOSITE[relation]
    said_colors = (a.color, b.color) if says_colors else (None, None)
    return position_spec(a.name, relation, b.name, said_colors)


def most_things(spec: Spec) -> int:
    """Objects that a picture of such a prompt may show, right or wrong."""
    return compound.MAX_THINGS if spec.tag == compound.TAG else 4


def near_miss(rng: np.random.Generator, s: Spec, scene: Scene, aimed: float = 0.0) -> Scene:
    """A scene that fails ``s`` by one change of ``scene``: another colour or class, swapped colours
    or places, one object more or less. A share ``aimed`` of the changes attacks what the prompt
    asks for (a relation, a count, who has which colour). Not held out."""
    changes = _AIMED[s.tag] if rng.random() < aimed else _CHANGES
    max_things = most_things(s)
    while True:
        changed_scene = Scene.of(_changed(rng, list(scene.things), changes, max_things))
        is_allowed = changed_scene.valid() and not scene_held_out(changed_scene)
        if is_allowed and not judge(s, changed_scene).correct:
            return changed_scene
        if rng.random() < 0.05:  # of some scenes every change is held out
            _, other_scene = sample_scene(rng, {s.tag: 1.0} if s.tag == compound.TAG else KINDS)
            if not judge(s, other_scene).correct:
                return other_scene


def mistake(rng: np.random.Generator, spec: Spec, scene: Scene) -> Scene:
    """A scene of ``spec`` after one more change of a kind that trained models make (``_MISTAKES``).
    Not held out; as it was where no such change is allowed."""
    kind = str(rng.choice(list(_MISTAKES), p=list(_MISTAKES.values())))
    max_things = most_things(spec)
    for _ in range(_TRIES):  # many changes are held out: each kind is tried, lest most be "drop"
        changed_scene = Scene.of(_changed(rng, list(scene.things), (kind,), max_things))
        if changed_scene.valid() and not scene_held_out(changed_scene) and changed_scene != scene:
            return changed_scene
    return scene


def _changed(
    rng: np.random.Generator, things: list[Thing], changes: tuple[str, ...], max_things: int = 4
) -> list[Thing]:
    """``things``, at most ``max_things``, after one of ``changes``, or as they were where it cannot
    be made."""
    i, j = rng.integers(len(things), size=2).tolist()  # may be the same
    a, b = things[i], things[j]
    y, x = CORNERS[rng.integers(len(CORNERS))]
    match changes[rng.integers(len(changes))]:
        case "color":
            things[i] = replace(a, color=_COLORS[rng.integers(10)])
        case "name":
            things[i] = replace(a, name=OBJECTS[rng.integers(len(OBJECTS))])
        case "drop" if len(things) > 1:
            things.pop(i)
        case "add" if len(things) < max_things:
            things.append(Thing(y, x, a.name, a.color))
        case "move":
            things[i] = replace(a, y=y, x=x)
        case "borrow color":
            things[i] = replace(a, color=b.color)
        case "borrow name":
            things[i] = replace(a, name=b.name)
        case "swap colors":
            things[i], things[j] = replace(a, color=b.color), replace(b, color=a.color)
        case "swap places":
            things[i], things[j] = replace(a, y=b.y, x=b.x), replace(b, y=a.y, x=a.x)
    return things


def caption(scene: Scene) -> str:
    """ "a red star, a blue cat and an orange anchor", in reading order."""
    return listing([phrase(thing.name, 1, thing.color) for thing in scene.things])


def question(rng: np.random.Generator, scene: Scene, there: float = 0.7) -> tuple[str, str]:
    """A question about a picture and its answer (one word). A share ``there`` asks "is there …?",
    yes and no equally likely; the rest ask for a colour, a count or whether a relation holds."""
    things = scene.things
    thing = things[rng.integers(len(things))]
    count_of_name = Counter(other_thing.name for other_thing in things)
    if rng.random() < there:
        return _question_there(rng, things, thing)
    is_alone = count_of_name[thing.name] == 1  # "the star" is one object
    question_kind = rng.integers(3)
    if question_kind == 0 and is_alone:
        return f"what color is the {thing.name}?", thing.color
    if question_kind == 1:
        count_word = NUMBERS[count_of_name[thing.name]]
        return f"how many {plurals()[thing.name]} are there?", count_word
    other_things = []
    for other_thing in things:
        if other_thing.name != thing.name and count_of_name[other_thing.name] == 1:
            other_things.append(other_thing)
    if question_kind == 2 and is_alone and other_things:
        return _question_relation(rng, thing, other_things[rng.integers(len(other_things))])
    return question(rng, scene, there)  # that kind cannot be asked of this scene: draw again


def _question_there(
    rng: np.random.Generator, things: tuple[Thing, ...], thing: Thing
) -> tuple[str, str]:
    """ "is there a red star?": of ``thing``, or of what none of ``things`` is."""
    names_color = rng.random() < 0.65
    asked_color: str | None
    if rng.random() < 0.5:
        asked_color = thing.color if names_color else None
        return f"is there {phrase(thing.name, 1, asked_color)}?", "Yes"
    while True:
        if not names_color:
            asked_name, asked_color = OBJECTS[rng.integers(len(OBJECTS))], None
        elif rng.random() < 0.6:  # a class that is there, in another object's colour or in any
            asked_name = thing.name
            if rng.random() < 0.5:
                asked_color = things[rng.integers(len(things))].color
            else:
                asked_color = _COLORS[rng.integers(len(_COLORS))]
        else:
            asked_name, asked_color = OBJECTS[rng.integers(len(OBJECTS))], thing.color
        if not any(
            other.name == asked_name and asked_color in (None, other.color) for other in things
        ):
            return f"is there {phrase(asked_name, 1, asked_color)}?", "No"


def _question_relation(
    rng: np.random.Generator, thing: Thing, other_thing: Thing
) -> tuple[str, str]:
    """ "is the star left of the cat?": half of any relation, half of one that holds."""
    holding_relations = relations(box(thing), box(other_thing))
    if rng.random() < 0.5 or not holding_relations:
        relation = RELATIONS[rng.integers(len(RELATIONS))]
    else:
        relation = sorted(holding_relations)[0]
    answer = "Yes" if relation in holding_relations else "No"
    return f"is the {thing.name} {relation} the {other_thing.name}?", answer


DESCRIBE = "what is in the picture?"
