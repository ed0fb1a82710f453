"""Ranks with unequal work call the same collectives and end with one process's weights; what
differs is seen."""

from dataclasses import replace

import numpy as np
import pytest

from secondlook.config import load
from secondlook.recipes import FOLDER as RECIPES
from secondlook.train.rl.config import RLConfig

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def order():
    return pytest.importorskip("simulate_order")


def test_ranks_with_unequal_work(order, janus, tmp_path):
    janus.save(tmp_path / "small")
    path = RECIPES / "1b/ppo.toml"
    chosen = [case for case in order.CASES if "one rank" in case.name]
    result = order.run(path, load(RLConfig, path, []), 8, 80.0, chosen, str(tmp_path / "small"))
    assert len(chosen) == 4 and len(result["lines"]) == 4
    assert result["fits"], result["lines"]


def test_what_differs_between_ranks_is_named(order):
    case = order.CASES[0]
    same = order.Ended(["gather", "reduce"], "score 1", {"w": np.zeros(2)}, 1.0)
    assert not order.wrong_with(case, [same, same], same)
    for other, said in (
        (replace(same, calls=["gather", "gather"]), "collective 1 of rank 1"),
        (replace(same, calls=["gather"]), "collective 1 of rank 1"),
        (replace(same, how="Stopped: the judge"), "rank 1 ended with 'Stopped: the judge'"),
    ):
        assert said in order.wrong_with(case, [same, other], same)
    assert "it ended with" in order.wrong_with(replace(case, ends="Stopped"), [same, same], same)
    assert "a weight is 1 away" in order.wrong_with(
        case, [same, same], replace(same, weights={"w": np.ones(2)})
    )
    assert "moved by 0" in order.wrong_with(case, [same, same], replace(same, moved=0.0))
