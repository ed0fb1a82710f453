"""What is asked for: specifications in GenEval's schema, their wording, and which compositions are
held out of training.

Wording and drawing of the prompts follow GenEval's generator (article + class templates, seed 43,
draws per task, then de-duplicated). A composition is held out when a hash of its canonical key says
so; its parts all occur elsewhere:

- ``single_object``: half of the objects are never asked for alone without a colour (they are with
  one, and beside others);
- ``two_object``: 40 of 120 object pairs never share a picture;
- ``counting``: each object misses one of the counts 2, 3, 4;
- ``colors``: each object misses five colours when it is alone in a picture (it has them in
  company);
- ``position``: 60 ordered (A, relation, B) are true of no training picture, in either wording;
- ``color_attr``: a fifth of the pairings {colour A, colour B} occur in no training picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import combinations, permutations, product
from typing import Any

import numpy as np

from secondlook.errors import InputError
from secondlook.io import odd_character
from secondlook.mini.world.scene import (
    COLORS,
    OBJECTS,
    OPPOSITE,
    RELATIONS,
    Scene,
    box,
    plurals,
    relations,
)

SEED = 43
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
ROWS_PER_TASK = 80


@dataclass(frozen=True)
class Clause:
    """``count`` objects of a class, all of ``color`` where one is named, at ``position`` =
    (relation, index of the clause it is relative to)."""

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Spec:
    """One row of GenEval metadata: every ``include`` clause must hold, no ``exclude`` clause
    may."""

    tag: str
    prompt: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    def metadata(self) -> dict:
        """The row as GenEval's ``evaluation_metadata.jsonl`` writes it."""
        metadata_row: dict = {"tag": self.tag}
        metadata_row["include"] = [_clause_row(clause) for clause in self.include]
        if self.exclude:
            metadata_row["exclude"] = [_clause_row(clause) for clause in self.exclude]
        return metadata_row | {"prompt": self.prompt}


def _clause_row(clause: Clause) -> dict:
    """A clause as GenEval's metadata writes it; fields without a value are left out."""
    clause_row: dict = {"class": clause.name, "count": clause.count}
    if clause.color is not None:
        clause_row["color"] = clause.color
    if clause.position is not None:
        clause_row["position"] = list(clause.position)
    return clause_row


def phrase(name: str, count: int = 1, color: str | None = None) -> str:
    """ "a red star", "an anchor", "three cats"."""
    name_words = [color] if color else []
    name_words.append(name if count == 1 else plurals()[name])
    article = "an" if name_words[0][0] in "aeiou" else "a"
    first_word = article if count == 1 else NUMBERS[count]
    return " ".join([first_word, *name_words])


def listing(phrases: list[str]) -> str:
    """ "a, b and c"."""
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def spec(tag: str, *clauses: Clause) -> Spec:
    """The specification and GenEval's wording of it. A ``position`` clause comes second and is
    worded first."""
    exclude: tuple[Clause, ...] = ()
    if tag == "position":
        b, a = clauses
        assert a.position is not None
        relation = a.position[0]
        wording = f"{phrase(a.name, 1, a.color)} {relation} {phrase(b.name, 1, b.color)}"
    else:
        wording = listing([phrase(clause.name, clause.count, clause.color) for clause in clauses])
    if tag == "counting":  # not one more either: GenEval counts exactly
        exclude = tuple(Clause(clause.name, clause.count + 1, clause.color) for clause in clauses)
    return Spec(tag, f"a photo of {wording}", clauses, exclude)


def position_spec(
    a: str, relation: str, b: str, colors: tuple[str | None, str | None] = (None, None)
) -> Spec:
    """ "a photo of A relation B"."""
    return spec("position", Clause(b, 1, colors[1]), Clause(a, 1, colors[0], (relation, 0)))


def parse(prompt: str) -> Spec:
    """The specification that a prompt of this world states: ``parse(s.prompt) == s``. Raises
    InputError for other words."""
    prompt_body = prompt.strip().removeprefix("a photo of ")
    for relation in RELATIONS:
        a_words, separator, b_words = prompt_body.partition(f" {relation} ")
        if separator:
            a, b = parse_clause(prompt, a_words), parse_clause(prompt, b_words)
            if a.count == b.count == 1:
                return position_spec(a.name, relation, b.name, (a.color, b.color))
            raise unreadable(prompt, prompt_body)
    clause_words = prompt_body.replace(" and ", ", ").split(", ")
    clauses = [parse_clause(prompt, clause_text) for clause_text in clause_words]
    return spec(_tag_of(clauses), *clauses)


def _tag_of(clauses: list[Clause]) -> str:
    """The task of a prompt without a relation."""
    has_several = len(clauses) > 1
    if any(clause.count > 1 for clause in clauses):
        return "counting"
    if any(clause.color for clause in clauses):
        return "color_attr" if has_several else "colors"
    return "two_object" if has_several else "single_object"


@cache
def _clauses() -> dict[str, Clause]:
    """Wording -> clause, of every clause without a position."""
    clause_of_wording = {}
    for name, count, color in product(OBJECTS, NUMBERS, (None, *COLORS)):
        clause_of_wording[phrase(name, count, color)] = Clause(name, count, color)
    return clause_of_wording


def parse_clause(prompt: str, clause_text: str) -> Clause:
    """The clause that a part of a prompt states. Raises InputError for other words."""
    clause_of_wording = _clauses()
    if clause_text not in clause_of_wording:
        raise unreadable(prompt, clause_text)
    return clause_of_wording[clause_text]


def unreadable(prompt: str, unreadable_text: str) -> InputError:
    """What to raise for a prompt because of a part of it."""
    odd_sign = odd_character(prompt.strip())
    if odd_sign:
        return InputError(
            f"prompt: {prompt!r} holds {odd_sign}; write a plain space or nothing there"
        )
    return InputError(
        f"prompt: {prompt!r} cannot be checked because of {unreadable_text!r}; "
        "write for example 'a photo of a red star and a blue cat', with an object of "
        f"{', '.join(OBJECTS)}, in {', '.join(COLORS)}"
    )


def _rank(key: str) -> float:
    """A fixed pseudo-random number in [0, 1) of a composition's key."""
    return int.from_bytes(sha256(f"{SEED}|{key}".encode()).digest()[:6], "big") / 2**48


def _lowest_ranked(keys: Iterable[Any], n: int) -> frozenset:
    """The ``n`` keys that are held out: those of the lowest `_rank`."""
    return frozenset(sorted(keys, key=lambda key: _rank(str(key)))[:n])


@cache
def held_out() -> dict[str, frozenset]:
    """Task -> canonical keys of the compositions that training never shows (``color_attr`` is a
    rule: `pairing_held_out`)."""
    held_out_pairs = _lowest_ranked(combinations(OBJECTS, 2), 40)
    layouts = []  # canonical keys (A, relation, B) of the pairs that may meet
    for a, b in combinations(OBJECTS, 2):
        if (a, b) not in held_out_pairs:
            layouts += [(a, "left of", b), (a, "above", b), (b, "left of", a), (b, "above", a)]
    held_out_counts: set[tuple[str, int]] = set()
    colored_objects: set[tuple[str, str]] = set()
    for name in OBJECTS:
        held_out_counts.add((name, 2 + int(3 * _rank(f"count {name}"))))  # one of 2, 3, 4
        color_keys = _lowest_ranked([f"{name} {color}" for color in COLORS], 5)
        colored_objects |= {(name, color_key) for color_key in color_keys}
    return {
        "single_object": _lowest_ranked(OBJECTS, len(OBJECTS) // 2),
        "two_object": held_out_pairs,
        "counting": frozenset(held_out_counts),
        "colors": frozenset(colored_objects),
        "position": _lowest_ranked(layouts, 60),
    }


def pairing_held_out(a: tuple[str, str], b: tuple[str, str]) -> bool:
    """Whether two (colour, object) may share no training picture."""
    return _rank(f"pairing {sorted((a, b))}") < 0.2


def scene_held_out(scene: Scene) -> bool:
    """Whether a picture shows any held-out composition."""
    held_out_keys = held_out()
    if len(scene.things) == 1:
        only_thing = scene.things[0]
        return (only_thing.name, f"{only_thing.name} {only_thing.color}") in held_out_keys["colors"]
    count_of_name = Counter(thing.name for thing in scene.things)
    if not held_out_keys["counting"].isdisjoint(count_of_name.items()):
        return True
    for a, b in combinations(scene.things, 2):
        if a.name == b.name:
            continue
        if tuple(sorted((a.name, b.name))) in held_out_keys["two_object"]:
            return True
        if pairing_held_out((a.color, a.name), (b.color, b.name)):
            return True
        for relation in relations(box(a), box(b)):
            if canonical(a.name, relation, b.name) in held_out_keys["position"]:
                return True
    return False


def canonical(a: str, relation: str, b: str) -> tuple[str, str, str]:
    """One key for "A left of B" and "B right of A"."""
    if relation in ("left of", "above"):
        return a, relation, b
    return b, OPPOSITE[relation], a


def spec_held_out(s: Spec) -> bool:
    """Whether a prompt names a held-out composition."""
    held_out_keys, clauses = held_out(), s.include
    if len(clauses) == 1:
        only = clauses[0]
        if only.count > 1:
            return (only.name, only.count) in held_out_keys["counting"]
        if only.color:
            return (only.name, f"{only.name} {only.color}") in held_out_keys["colors"]
        return only.name in held_out_keys["single_object"]
    for a, b in combinations(clauses, 2):
        if a.name != b.name and tuple(sorted((a.name, b.name))) in held_out_keys["two_object"]:
            return True
        if a.color and b.color and pairing_held_out((a.color, a.name), (b.color, b.name)):
            return True
    for clause in clauses:
        if clause.position is not None:
            relation, other_index = clause.position
            layout = canonical(clause.name, relation, clauses[other_index].name)
            if layout in held_out_keys["position"]:
                return True
    return False


def check_split(split: str) -> None:
    """Raises InputError for a split that the miniature's benchmarks do not have."""
    if split not in ("held-out", "seen"):
        raise InputError(f"split: {split!r} is unknown; use 'held-out' or 'seen'")


@cache
def benchmark(split: str = "held-out") -> tuple[Spec, ...]:
    """Mini-GenEval: 80 rows a task, drawn with seed 43 among the held-out compositions
    (``split="seen"``: among the others).

    Where a task has fewer than 80 such compositions (single_object 8, counting 16 held out) its
    rows repeat them; intervals are taken over distinct prompts. Raises InputError for another
    split.
    """
    check_split(split)
    rng = np.random.default_rng(SEED)
    benchmark_rows: list[Spec] = []
    for task in TASKS:
        candidates = _compositions(task, rng)
        wanted_specs = [s for s in candidates if spec_held_out(s) == (split == "held-out")]
        # in the order in which they were made
        distinct_specs = list(dict.fromkeys(wanted_specs))
        row_order = rng.permutation(len(distinct_specs))
        benchmark_rows += [
            distinct_specs[row_order[i % len(distinct_specs)]] for i in range(ROWS_PER_TASK)
        ]
    return tuple(benchmark_rows)


def _compositions(task: str, rng: np.random.Generator) -> list[Spec]:
    """All of a task's specifications, held out or not; of color_attr, which has too many, a random
    choice (only this one draws from ``rng``)."""
    if task == "single_object":
        return [spec(task, Clause(name)) for name in OBJECTS]
    if task == "two_object":
        return [spec(task, Clause(a), Clause(b)) for a, b in permutations(OBJECTS, 2)]
    if task == "counting":
        return [spec(task, Clause(name, count)) for name, count in product(OBJECTS, (2, 3, 4))]
    if task == "colors":
        return [spec(task, Clause(name, 1, color)) for name, color in product(OBJECTS, COLORS)]
    all_specs: list[Spec] = []
    if task == "position":
        for a, b in permutations(OBJECTS, 2):
            # a relation is held out for itself here, not because its two objects never meet
            if not spec_held_out(spec("two_object", Clause(b), Clause(a))):
                all_specs += [position_spec(a, relation, b) for relation in RELATIONS]
        return all_specs
    while len(all_specs) < 20 * ROWS_PER_TASK:
        a, b = rng.choice(OBJECTS, 2, replace=False).tolist()
        color_a, color_b = rng.choice(list(COLORS), 2, replace=False).tolist()
        if not spec_held_out(spec("two_object", Clause(a), Clause(b))):
            all_specs.append(spec(task, Clause(a, 1, color_a), Clause(b, 1, color_b)))
    return all_specs
