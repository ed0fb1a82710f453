"""The benchmarks' arithmetic, and one small run recomputed from its own JSON."""

import json

import numpy as np
import pytest

from secondlook.bench import geneval
from secondlook.bench.base import Sample, agreement, bootstrap, by_prompt, mean_of_tasks
from secondlook.introspect import Sampling
from secondlook.types import InputError


def test_overall_is_the_mean_of_tasks_and_prompts_are_resampled():
    samples = [Sample("a", f"p{i}", float(i < 5)) for i in range(10) for _ in range(4)] + [Sample("b", "q", 1.0)]
    found = mean_of_tasks(samples)
    assert found["mean"] == pytest.approx((0.5 + 1.0) / 2)
    # ten prompts whose four images agree: the interval is that of ten draws, not of forty
    assert found["high"] - found["low"] == pytest.approx(3.92 * np.sqrt(0.25 / 10) / 2, rel=0.15)
    assert bootstrap({}, lambda v: 0.0)["mean"] != bootstrap({}, lambda v: 0.0)["mean"], "nothing gives nan, never 0"
    assert len(by_prompt(samples)["a"]) == 10


def test_agreement_sees_through_always_yes():
    truth = [True] * 73 + [False] * 27
    row = agreement(truth, [True] * 100, [str(i) for i in range(100)])
    assert row["accuracy"] == 0.73 and row["always_yes_rate"] == 1.0
    assert row["balanced_accuracy"]["mean"] == 0.5 and row["kappa"] == 0.0


def test_chance_of_a_relation():
    assert 0.2 < geneval.chance_of_relation() < 0.5


@pytest.mark.slow
def test_a_run_equals_its_recomputation(engine, tmp_path):
    settings = geneval.Settings("tiny", samples=2, rounds=2, rows_per_task=3)
    scored = geneval.run(engine, settings, Sampling(guidance=1.0))
    result = geneval.write(tmp_path, scored, settings)
    assert json.loads((tmp_path / "result.json").read_text())["overall"].keys() == {"first", "final", "gain"}
    rows = json.loads((tmp_path / "episodes.json").read_text())
    assert len(rows) == 6 * 3 * 2 == result["images"]
    by_task: dict[str, list[bool]] = {}
    for row in rows:
        by_task.setdefault(row["tag"], []).append(row["rounds"][row["final"]]["right"])
    assert result["overall"]["final"]["mean"] == pytest.approx(np.mean([np.mean(v) for v in by_task.values()]))
    assert len({tuple(r["rounds"][0]["codes"]) for r in rows}) == len(rows), "distinct samples"
    assert "Mini-GenEval" in (tmp_path / "geneval.html").read_text()


@pytest.mark.parametrize("field", ["samples", "rounds", "rows_per_task"])
def test_settings_are_checked(field):
    with pytest.raises(InputError, match=field):
        geneval.Settings("m", **{field: 0})
