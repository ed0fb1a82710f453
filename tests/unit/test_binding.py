"""Mini-binding tells a judge that binds from one that counts along."""

from types import SimpleNamespace

import numpy as np
import pytest

from secondlook.mini.evals.binding import MiniBinding, draw_pairs, tell_apart
from secondlook.mini.world.compound import parse
from secondlook.mini.world.language import scene_held_out
from secondlook.mini.world.reader import judge, read, scene_of


def by_content(prompt, image):
    return float(judge(parse(prompt), image).correct)


def by_order(prompt, image):
    """Compares the i-th clause with the i-th object of those that are asked for."""
    include = parse(prompt).include
    asked = {clause.name for clause in include}
    things = [t for t in scene_of(read(image)).things if t.name in asked]
    colors = list(dict.fromkeys((thing.name, thing.color) for thing in things))
    return float([color for _, color in colors] == [clause.color for clause in include])


def engine_of(judges):
    """An engine whose verdicts are a function of prompt and picture; questions are answered so
    too."""
    template = SimpleNamespace(
        yes=1,
        no=2,
        judge=lambda prompt, images, reasons: (prompt, images[0]),
        ask=lambda image, question: (f"a photo of {question[9:-1]}", image),
    )

    def write(requests, sampling_params, max_tokens):
        return [SimpleNamespace(p_yes=judges(*request.segments)) for request in requests]

    return SimpleNamespace(template=template, write=write)


def test_pairs_differ_in_two_colours():
    pairs = draw_pairs(np.random.default_rng(0), 3, 15)
    for pair in pairs:
        assert judge(pair.spec, pair.right).correct and not judge(pair.spec, pair.wrong).correct
        assert not scene_held_out(pair.right) and not scene_held_out(pair.wrong)
        right, wrong = pair.right.things, pair.wrong.things
        assert [(t.name, t.y, t.x) for t in right] == [(t.name, t.y, t.x) for t in wrong]
        assert sum(a != b for a, b in zip(right, wrong, strict=True)) == 2
    for in_order, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert set(in_order.spec.include) == set(other.spec.include)
        assert in_order.spec.include != other.spec.include


def test_who_binds_and_who_counts_along():
    settings = MiniBinding(pairs=12)
    perfect = tell_apart(engine_of(by_content), settings)
    assert {value["mean"] for value in perfect["kinds"].values()} == {1.0}
    assert perfect["headline"]["told_apart"]["mean"] == 1.0
    counting = tell_apart(engine_of(by_order), settings)["kinds"]
    assert counting["2 clauses in order"]["mean"] == 1.0
    # of most pairs neither picture fits then, of some the wrong one alone
    assert counting["2 clauses in another order"]["mean"] < 0.5
    blind = tell_apart(engine_of(lambda prompt, image: 0.7), settings)
    assert {value["mean"] for value in blind["kinds"].values()} == {0.5}


@pytest.mark.parametrize("pairs", [0, -1])
def test_a_number_of_pairs_is_checked(pairs):
    with pytest.raises(ValueError, match="pairs"):
        MiniBinding(pairs=pairs)
