"""RL mathematics against reference values computed in plain numpy, and the invariants of an update."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from secondlook.model import policy
from secondlook.train.advantage import (
    advantages,
    balanced,
    comprehension,
    episode_reward,
    normalise,
    segment_rewards,
    verdict_advantage,
)
from secondlook.train.loss import kl_k3, policy_loss
from secondlook.train.update import Schedule
from secondlook.types import InputError, Rule

FOLDER = Path(__file__).parent / "golden" / "rl_math"
TIGHT = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "rl_math.npz") as stored:
        return {name: torch.from_numpy(np.asarray(stored[name])) for name in stored}


def guided(g) -> torch.Tensor:
    return g["uncond_logits"] + g["guidance"] * (g["cond_logits"] - g["uncond_logits"])


def test_behaviour_logprobs(golden):
    g = golden
    picked = g["tokens"][..., None]
    for rule, name in ((Rule("code"), "logp_behaviour"), (Rule("code", temperature=0.7), "logp_behaviour_temperature_0.7")):
        ours = policy.log_probs(rule, guided(g)).gather(-1, picked).squeeze(-1)
        torch.testing.assert_close(ours, g[name], **TIGHT)
    best = policy.log_probs(Rule("code", top_k=8), guided(g)).gather(-1, g["tokens_topk"][..., None]).squeeze(-1)
    torch.testing.assert_close(best, g["logp_behaviour_topk8"], **TIGHT)


def test_restricted_verdict(golden):
    rule = Rule("text", first=tuple(golden["verdict_ids"].tolist()))
    ours = policy.log_probs(rule, golden["cond_logits"][:, 0], first=True)
    picked = ours.gather(-1, golden["verdict_tokens"][:, None]).squeeze(-1)
    torch.testing.assert_close(picked, golden["logp_verdict_restricted"], **TIGHT)


def test_group_advantages(golden):
    ours = np.stack([normalise(row) for row in golden["rewards"].numpy()])
    np.testing.assert_allclose(ours, golden["advantages"].numpy(), **TIGHT)


def test_episode_rewards():
    for case in json.loads((FOLDER / "rl_math.json").read_text())["episodes"]["cases"]:
        yes = [bool(v) for v in case["SE"]]
        assert [comprehension(s, y) for s, y in zip(case["S"], yes, strict=True)] == pytest.approx(case["r_comp"], abs=1e-9)
        for weight in ("T-K+1", "T-K"):
            assert episode_reward(case["S"], yes, case["T"], weight) == pytest.approx(case[f"reward_w_{weight}"], abs=1e-9)


def test_segment_rewards(golden):
    g = {k: v.numpy() for k, v in golden.items()}
    for i in range(7):
        ours = segment_rewards([g["score_image1"][i], g["score_image2"][i]], [bool(g["said_yes"][i]), True])
        wanted = [g["segment_reward_draw"][i], g["segment_reward_judge"][i], g["segment_reward_redraw"][i]]
        assert ours[:3] == pytest.approx(wanted, abs=1e-9)


def test_clipped_loss_and_its_gradient(golden):
    g = golden
    keep = g["mask"].bool()
    flat = {k: g[k][keep] for k in ("logp_new", "logp_old", "logp_ref")}
    advantage = g["adv"][:, None].expand_as(g["mask"])[keep]
    per_sequence = (1 / g["mask"].sum(1))[:, None].expand_as(g["mask"])[keep]
    torch.testing.assert_close(kl_k3(g["logp_new"], g["logp_ref"]), g["kl_k3"], **TIGHT)
    for name, weight in (("global_token_mean", torch.ones_like(per_sequence)), ("mean_of_sequence_means", per_sequence)):
        logp = flat["logp_new"].clone().requires_grad_()
        limits = float(g["epsilon"]), float(g["beta"])
        out = policy_loss(logp, flat["logp_old"], flat["logp_ref"], advantage, weight, float(weight.sum()), *limits)
        out.loss.backward()
        torch.testing.assert_close(out.loss.detach(), g[f"loss_{name}"], **TIGHT)
        torch.testing.assert_close(logp.grad, g[f"grad_{name}"][keep], **TIGHT)
        assert float(out.clipped) / int(keep.sum()) == pytest.approx(float(g["fraction_clipped"]), abs=1e-9)


def test_a_missing_score_is_masked_and_moves_nobody():
    scores = [[0.9], [0.1], [0.5], [math.nan]]
    yes = [[True], [True], [False], [True]]
    p_yes = [[0.7], [0.7], [0.4], [0.5]]
    for form in ("episode", "segment", "expected"):
        with_missing = advantages(scores, yes, 1, form, p_yes=p_yes)
        without = advantages(scores[:3], yes[:3], 1, form, p_yes=p_yes[:3])
        assert with_missing[:3] == without
        assert all(math.isnan(a) for a in with_missing[3])


def test_segments_are_normalised_among_those_that_got_there():
    scores, yes = [[0.9], [0.2, 0.8], [0.2, 0.4]], [[True], [False, True], [False, False]]
    a = advantages(scores, yes, 2, "segment")
    assert [len(x) for x in a] == [2, 4, 4]
    assert a[1][2] == pytest.approx(-a[2][2]) and a[1][2] > 0  # two redraws, the better one above
    assert a[0][1] > a[1][1] and a[1][1] == pytest.approx(a[2][1])  # 0.9 called right: 0.9; 0.2 called wrong: 0.8
    [same] = {tuple(x) for x in advantages([[0.5]] * 2, [[True]] * 2, 1, "segment")}
    assert same == (0.0, 0.0)


def test_a_true_no_among_right_images_is_not_unlearned():
    scores, yes = [[1.0], [1.0], [1.0], [0.3, 1.0]], [[True], [True], [True], [False, True]]
    p_yes = [[0.9], [0.9], [0.8], [0.3, 0.9]]
    assert advantages(scores, yes, 2, "segment")[3][1] < -1  # the flaw: 0.7 beside three times 1.0
    expected = advantages(scores, yes, 2, "expected", p_yes=p_yes)
    assert expected[3][1] == pytest.approx(math.sqrt(0.3 / 0.7), rel=1e-2)
    for s, p in ((1.0, 0.9), (0.3, 0.6), (0.0, 0.02)):
        of_yes, of_no = (verdict_advantage(s, y, p) for y in (True, False))
        assert p * of_yes + (1 - p) * of_no == pytest.approx(0, abs=1e-9)
        assert (of_yes > of_no) == (s > 0.5)
    assert verdict_advantage(1.0, True, 1.0) == 0 == verdict_advantage(0.5, True, 0.7)


def test_balanced_verdicts_weigh_the_same_on_both_sides():
    scores = [[[1.0], [1.0], [1.0]], [[0.2, 1.0], [1.0], [math.nan]]]
    ones = [[[1.0, 1.0] * len(s) if math.isfinite(s[0]) else [math.nan] * 2 for s in group] for group in scores]
    out = balanced(ones, scores)
    assert out[0] == [[1.0, pytest.approx(0.6)]] * 3 and out[1][0] == pytest.approx([1.0, 3.0, 1.0, 0.6])
    assert all(math.isnan(a) for a in out[1][2])
    assert balanced([[[1.0, 1.0]]] * 30, [[[1.0]]] * 29 + [[[0.0]]])[-1] == [[1.0, 5.0]]  # never more than five times


def test_schedules():
    rl = Schedule(steps=3000, peak=6e-6, low=2e-7, warmup=100, convert=2e-6, convert_step=400)
    assert rl.at(0) == pytest.approx(6e-8) and rl.at(99) == pytest.approx(6e-6) and rl.at(100) == pytest.approx(6e-6)
    assert rl.at(250) == pytest.approx(4e-6) and rl.at(400) == pytest.approx(2e-6)
    assert rl.at(1700) == pytest.approx((2e-6 + 2e-7) / 2) and rl.at(3000) == pytest.approx(2e-7)
    cosine = Schedule(steps=100, peak=1.0, low=0.0, warmup=0)
    assert cosine.at(50) == pytest.approx(0.5)
    with pytest.raises(InputError, match="convert_step"):
        Schedule(steps=100, peak=1.0, low=0.0, warmup=10, convert=0.5, convert_step=100)
