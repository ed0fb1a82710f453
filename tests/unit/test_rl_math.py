"""RL mathematics against reference values computed in plain numpy, and the invariants of an
update."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from secondlook.errors import InputError
from secondlook.models import sampling
from secondlook.rewards.reward import Score
from secondlook.train.rl.advantages import (
    RedrawReward,
    comprehension,
    episode_reward,
    gae,
    group_advantages,
    normalise,
    reason_advantages,
    segment_rewards,
    turn_rewards,
    verdict_advantage,
    verdict_balance,
    whiten,
)
from secondlook.train.rl.config import AdvantageConfig
from secondlook.train.rl.critic import Critic, ValueHead, whiten_advantages
from secondlook.train.rl.losses import explained_variance, kl_k3, policy_loss, value_loss
from secondlook.train.rl.trajectory import Trajectory, TrajectoryTurn, varies
from secondlook.train.rl.turn_weights import scale_verdicts, select_turns, total_weight, weigh
from secondlook.train.schedule import Schedule
from secondlook.types import SamplingParams, TokenIds, Turn

FOLDER = Path(__file__).parents[1] / "golden" / "rl_math"
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
    for sampling_params, name in (
        (SamplingParams("code"), "logp_behaviour"),
        (SamplingParams("code", temperature=0.7), "logp_behaviour_temperature_0.7"),
    ):
        ours = sampling.log_probs(sampling_params, guided(g)).gather(-1, picked).squeeze(-1)
        torch.testing.assert_close(ours, g[name], **TIGHT)
    best = (
        sampling.log_probs(SamplingParams("code", top_k=8), guided(g))
        .gather(-1, g["tokens_topk"][..., None])
        .squeeze(-1)
    )
    torch.testing.assert_close(best, g["logp_behaviour_topk8"], **TIGHT)


def test_restricted_verdict(golden):
    sampling_params = SamplingParams("text", first=tuple(golden["verdict_ids"].tolist()))
    ours = sampling.log_probs(sampling_params, golden["cond_logits"][:, 0], first=True)
    picked = ours.gather(-1, golden["verdict_tokens"][:, None]).squeeze(-1)
    torch.testing.assert_close(picked, golden["logp_verdict_restricted"], **TIGHT)


def test_group_advantages(golden):
    ours = np.stack([normalise(row) for row in golden["rewards"].numpy()])
    np.testing.assert_allclose(ours, golden["advantages"].numpy(), **TIGHT)


def test_episode_rewards():
    for case in json.loads((FOLDER / "rl_math.json").read_text())["episodes"]["cases"]:
        yes = [bool(v) for v in case["SE"]]
        assert [comprehension(s, y) for s, y in zip(case["S"], yes, strict=True)] == pytest.approx(
            case["r_comp"], abs=1e-9
        )
        for weight in ("T-K+1", "T-K"):
            assert episode_reward(case["S"], yes, case["T"], weight) == pytest.approx(
                case[f"reward_w_{weight}"], abs=1e-9
            )


def test_segment_rewards(golden):
    g = {k: v.numpy() for k, v in golden.items()}
    for i in range(7):
        ours = segment_rewards(
            [g["score_image1"][i], g["score_image2"][i]], [bool(g["said_yes"][i]), True]
        )
        wanted = [
            g["segment_reward_draw"][i],
            g["segment_reward_judge"][i],
            g["segment_reward_redraw"][i],
        ]
        assert ours[:3] == pytest.approx(wanted, abs=1e-9)


def test_clipped_loss_and_its_gradient(golden):
    g = golden
    keep = g["mask"].bool()
    flat = {k: g[k][keep] for k in ("logp_new", "logp_old", "logp_ref")}
    advantage = g["adv"][:, None].expand_as(g["mask"])[keep]
    per_sequence = (1 / g["mask"].sum(1))[:, None].expand_as(g["mask"])[keep]
    torch.testing.assert_close(kl_k3(g["logp_new"], g["logp_ref"]), g["kl_k3"], **TIGHT)
    for name, weight in (
        ("global_token_mean", torch.ones_like(per_sequence)),
        ("mean_of_sequence_means", per_sequence),
    ):
        logp = flat["logp_new"].clone().requires_grad_()
        limits = float(g["epsilon"]), float(g["beta"])
        out = policy_loss(
            logp,
            flat["logp_old"],
            flat["logp_ref"],
            advantage,
            weight,
            float(weight.sum()),
            *limits,
        )
        out.loss.backward()
        torch.testing.assert_close(out.loss.detach(), g[f"loss_{name}"], **TIGHT)
        torch.testing.assert_close(logp.grad, g[f"grad_{name}"][keep], **TIGHT)
        assert float(out.clipped) / int(keep.sum()) == pytest.approx(
            float(g["fraction_clipped"]), abs=1e-9
        )


def test_generalised_advantages(golden):
    g = {k: v.numpy() for k, v in golden.items() if k.startswith("gae")}
    for i, (r, v) in enumerate(zip(g["gae_rewards"], g["gae_values"], strict=True)):
        a = gae(r, v, float(g["gae_gamma"]), float(g["gae_lambda"]), float(g["gae_bootstrap"][i]))
        np.testing.assert_allclose(a, g["gae_advantages"][i], **TIGHT)
        np.testing.assert_allclose(a + v, g["gae_returns"][i], **TIGHT)
    np.testing.assert_allclose(
        whiten(g["gae_advantages"].ravel()), g["gae_whitened"].ravel(), **TIGHT
    )


def test_clipped_value_loss(golden):
    flat = [golden[k].flatten() for k in ("value_new", "gae_values", "gae_returns")]
    ours = value_loss(*flat, torch.ones(len(flat[0])), len(flat[0]))
    torch.testing.assert_close(ours, golden["value_loss"], **TIGHT)
    three, none, one = torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([1.0])
    far = value_loss(three, none, one, torch.ones(1), 1.0, clip_range=None)
    assert float(far) == 2.0
    assert explained_variance(flat[2], flat[2]) == 1.0 and math.isnan(
        explained_variance(flat[2], torch.ones(18))
    )


def test_clipping_may_leave_more_room_above():
    behaviour, advantage = torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0])
    logp = torch.log(torch.tensor([1.25, 1.35, 0.75, 0.85])).requires_grad_()
    out = policy_loss(
        logp, behaviour, behaviour, advantage, torch.ones(4), 4.0, 0.2, 0.0, clip_range_high=0.3
    )
    out.loss.backward()
    assert (logp.grad == 0).tolist() == [False, True, True, False] and int(out.clipped) == 2


def test_advantages_without_the_groups_spread():
    rewards = np.array([0.0, 0.5, 1.0, np.nan])
    np.testing.assert_allclose(normalise(rewards, scale_rewards="none"), [-0.5, 0.0, 0.5, np.nan])
    scores, yes, p_yes = [[0.9], [0.1]], [[True], [True]], [[0.5], [0.5]]
    found = group_advantages(scores, yes, 1, "expected", p_yes=p_yes, scale_rewards="none")
    np.testing.assert_allclose(found, [[0.4, 0.4], [-0.4, -0.4]])


def turn(n: int, kind: str = "draw", **fields) -> TrajectoryTurn:
    """A turn of ``n`` tokens."""
    sampling_params = SamplingParams("text" if kind == "judge" else "code")
    sampled = Turn(kind, (TokenIds((1,)),), tuple(range(n)), (-1.0,) * n, sampling_params, 0)
    return TrajectoryTurn(kind, 0.0, sampled, **fields)


def trajectory(scores: list[float], advantages: list[float], group: int = 0) -> Trajectory:
    """An episode of images with these scores (NaN: missing), and its turns' advantages."""
    turns = []
    for k, advantage in enumerate(advantages):
        drawing_or_verdict = turn(3, "judge" if k % 2 else "draw", advantage=advantage)
        drawing_or_verdict.image_score = scores[k // 2]
        turns.append(drawing_or_verdict)
    known = tuple(Score(s, s > 0.5, "") if math.isfinite(s) else None for s in scores)
    n = len(scores)
    return Trajectory(group, known, (True,) * n, (0.5,) * n, n - 1, turns)


def test_a_group_varies_where_its_drawings_do():
    assert varies([trajectory([0.9], [0.4, 0.0])])
    assert not varies([trajectory([0.9], [0.0, 1.0]), trajectory([math.nan], [math.nan, 0.0])])


@pytest.mark.parametrize(
    ("reduction", "of_turns"),
    [("token", [0.2, 0.8]), ("turn", [0.5, 0.5]), ("constant", [0.1, 0.4])],
)
def test_reductions(reduction, of_turns):
    """What a long turn's and a short turn's tokens weigh, over the update's denominator."""
    turns = [turn(2), turn(8)]
    for each in turns:
        weigh(each, reduction, max_tokens=10)
    shares = [t.token_weight * len(t.turn.tokens) / total_weight(turns) for t in turns]
    assert shares == pytest.approx(of_turns)


def test_what_is_learned_from_is_numbered_over_all_groups():
    """Flat groups and masked turns are left out, and those of other ranks are counted."""
    nan = math.nan
    flat = trajectory([0.5], [0.0, 0.0], group=0)
    masked = trajectory([nan], [nan, nan], group=1)
    elsewhere = trajectory([0.9], [1.0, 2.0], group=1).without_episode()
    own = trajectory([0.1], [-1.0, -2.0], group=2)
    config = AdvantageConfig(drop_flat_groups=True)
    selected = select_turns([flat, masked, elsewhere, own], config, "token", 10)
    assert selected == [*elsewhere.turns, *own.turns]
    assert [t.index for t in selected] == [0, 1, 2, 3]
    assert [t.index for t in (*flat.turns, *masked.turns)] == [-1] * 4
    assert [t.token_weight for t in selected] == [0.0, 0.0, 1.0, 1.0]


def test_rewards_of_turns():
    assert turn_rewards([0.2, 0.8], [False, True], 3, "segment") == pytest.approx(
        [0.2, 0.8, 0.8, 0.8]
    )
    whole = episode_reward([0.2, 0.8], [False, True], 3)
    assert turn_rewards([0.2, 0.8], [False, True], 3) == [whole] * 4
    assert all(
        math.isnan(r)
        for credit in ("episode", "segment")
        for r in turn_rewards([math.nan], [True], 3, credit)
    )


def test_progress_pays_and_regress_and_a_premature_yes_cost():
    shaping = RedrawReward(progress=0.5, regress=2.0, premature_yes=0.25)
    scores, yes = [0.2, 0.6, 0.5], [True, False, True]
    plain = segment_rewards(scores, yes)
    shaped = segment_rewards(scores, yes, shaping)
    # the first verdict is a Yes to a wrong image, the last one is not; images 0.4 up, 0.1 down
    assert np.subtract(shaped, plain) == pytest.approx([0, -0.25, 0.2, 0, -0.2, 0])
    changed = episode_reward(scores, yes, 3, shaping=shaping) - episode_reward(scores, yes, 3)
    assert changed == pytest.approx(0.2 - 0.2 - 0.25)
    assert turn_rewards(scores, yes, 3, "segment", shaping=shaping) == pytest.approx(shaped)
    # on an image that is judged by a coin, Yes is worth less than before
    before = verdict_advantage(0.2, True, 0.5, scale_rewards="none")
    after = verdict_advantage(0.2, True, 0.5, scale_rewards="none", shaping=shaping)
    assert after == pytest.approx(before - 0.125)
    [first, _] = group_advantages([scores, scores], [yes, yes], 3, "segment", shaping=shaping)
    assert first == [0] * 6, "equal episodes have nothing to learn"


def test_reasons_are_compared_with_those_of_the_same_round():
    nan = math.nan
    advantages = reason_advantages([[1.0, nan], [0.0, 0.5], [nan]], scale_rewards="none")
    assert advantages[0][0] == 0.5 and advantages[1] == [-0.5, 0.0]
    assert math.isnan(advantages[0][1]) and math.isnan(advantages[2][0])


def test_a_reason_of_its_own_truth_leaves_the_verdicts_token_alone():
    sampled = Turn("judge", (TokenIds((1,)),), (1, 2, 3), (-1.0,) * 3, SamplingParams("text"), 0)
    turn = TrajectoryTurn("judge", 0.2, sampled, advantage=1.0, advantage_scale=2.0)
    assert turn.token_advantages == [2.0, 2.0, 2.0]
    turn.reason_advantage = -0.5
    assert turn.token_advantages == [2.0, -1.0, -1.0]


def test_the_critic_learns_what_states_earn():
    """States that tell the reward: values follow it, advantages shrink; the states themselves get
    no gradient."""
    torch.manual_seed(0)
    turns = []
    for kind in ("draw", "judge"):
        for i in range(16):
            turns.append(turn(4, kind, reward=float(i % 2), index=len(turns)))
            weigh(turns[-1])
    hidden = torch.randn(32, 4, 8)  # (turns, tokens, D)
    hidden[:, :, 0] = torch.tensor([t.reward for t in turns])[:, None] * 3
    hidden.requires_grad_()
    critic = Critic(ValueHead(8), lr=1e-2)
    states = list(hidden)
    halves = [list(range(0, 32, 2)), list(range(1, 32, 2))]
    explained = []
    for _ in range(30):
        explained.append(critic.estimate(turns, states)["explained_variance"])
        critic.fit(turns, states, halves, clip_range=None)
    assert explained[0] < 0.1 and explained[-1] > 0.9 and hidden.grad is None
    resumed = Critic(ValueHead(8), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(critic.state_dict()))
    for each in (critic, resumed):
        each.fit(turns, states, [[0, 20]], clip_range=0.2)
    values = [c.value_head(hidden[1], "text") for c in (critic, resumed)]
    assert torch.equal(*values)


def test_token_advantages_are_whitened_by_kind_and_then_scaled():
    rng = np.random.default_rng(0)
    turns = []
    for kind, scale in (("draw", 1.0), ("judge", 2.0)):
        for _ in range(8):
            earned = tuple((3 * rng.normal(size=4) + 1).tolist())
            turns.append(turn(4, kind, advantage=earned, returns=earned, advantage_scale=scale))
    before = [t.returns for t in turns]
    whiten_advantages(turns)
    assert [t.returns for t in turns] == before
    for kind, scale in (("draw", 1.0), ("judge", 2.0)):
        flat = np.concatenate([t.token_advantages for t in turns if t.kind == kind])
        assert abs(flat.mean()) < 1e-9 and flat.std(ddof=1) == pytest.approx(scale, abs=1e-6)


def test_the_kl_may_be_taken_off_the_rewards():
    one = turn(3, reward=1.0, old_logprobs=(-1.0,) * 3, reference_logprobs=(-1.0, -2.0, -1.0))
    critic = Critic(ValueHead(8), 1e-2, gae_lambda=1.0)
    critic.estimate([one], [torch.zeros(3, 8)], kl_weight=0.5)
    # the second token is e times likelier than to the reference
    assert one.returns == pytest.approx((0.5, 0.5, 1.0))


def test_a_missing_score_is_masked_and_moves_nobody():
    scores = [[0.9], [0.1], [0.5], [math.nan]]
    yes = [[True], [True], [False], [True]]
    p_yes = [[0.7], [0.7], [0.4], [0.5]]
    for credit in ("episode", "segment", "expected"):
        with_missing = group_advantages(scores, yes, 1, credit, p_yes=p_yes)
        without = group_advantages(scores[:3], yes[:3], 1, credit, p_yes=p_yes[:3])
        assert with_missing[:3] == without
        assert all(math.isnan(a) for a in with_missing[3])


def test_segments_are_normalised_among_those_that_got_there():
    scores, yes = [[0.9], [0.2, 0.8], [0.2, 0.4]], [[True], [False, True], [False, False]]
    a = group_advantages(scores, yes, 2, "segment")
    assert [len(x) for x in a] == [2, 4, 4]
    assert a[1][2] == pytest.approx(-a[2][2]) and a[1][2] > 0  # two redraws, the better one above
    assert a[0][1] > a[1][1] and a[1][1] == pytest.approx(
        a[2][1]
    )  # 0.9 called right: 0.9; 0.2 called wrong: 0.8
    [same] = {tuple(x) for x in group_advantages([[0.5]] * 2, [[True]] * 2, 1, "segment")}
    assert same == (0.0, 0.0)


def test_a_true_no_among_right_images_is_not_unlearned():
    scores, yes = [[1.0], [1.0], [1.0], [0.3, 1.0]], [[True], [True], [True], [False, True]]
    p_yes = [[0.9], [0.9], [0.8], [0.3, 0.9]]
    segment = group_advantages(scores, yes, 2, "segment")
    assert segment[3][1] < -1  # the flaw: 0.7 beside three times 1.0
    expected = group_advantages(scores, yes, 2, "expected", p_yes=p_yes)
    assert expected[3][1] == pytest.approx(math.sqrt(0.3 / 0.7), rel=1e-2)
    for s, p in ((1.0, 0.9), (0.3, 0.6), (0.0, 0.02)):
        of_yes, of_no = (verdict_advantage(s, y, p) for y in (True, False))
        assert p * of_yes + (1 - p) * of_no == pytest.approx(0, abs=1e-9)
        assert (of_yes > of_no) == (s > 0.5)
    assert verdict_advantage(1.0, True, 1.0) == 0 == verdict_advantage(0.5, True, 0.7)


def test_balanced_verdicts_weigh_the_same_on_both_sides():
    right = [trajectory([1.0], [1.0, 1.0]) for _ in range(4)]
    mixed = trajectory([0.2, 1.0], [1.0] * 4)
    missing = trajectory([math.nan], [math.nan] * 2)
    trajectories = [*right, mixed, missing]
    scale_verdicts(trajectories, AdvantageConfig(balance_verdicts=True))
    scaled = [[a for turn in t.turns for a in turn.token_advantages[:1]] for t in trajectories]
    assert scaled[0] == [1.0, pytest.approx(0.6)]
    assert scaled[4] == pytest.approx([1.0, 3.0, 1.0, 0.6])
    assert all(math.isnan(a) for a in scaled[5])


def test_no_verdict_weighs_more_than_five_times():
    balance = verdict_balance([1.0] * 29 + [0.0])
    assert balance.factor(0.0) == 5.0 and balance.factor(1.0) == pytest.approx(15 / 29)


def test_one_sided_steps_are_balanced_too():
    """All images right, and a score missing: this divided by zero once."""
    trajectories = [trajectory([0.9], [1.0, 1.0]), trajectory([math.nan], [math.nan] * 2)]
    scale_verdicts(trajectories, AdvantageConfig(balance_verdicts=True))
    assert [t.advantage_scale for t in trajectories[0].turns] == [1.0, 0.5]


def test_schedules():
    table_5 = Schedule(3000, 6e-6, 2e-7, warmup_steps=100, convert_lr=2e-6, convert_step=400)
    for step, lr in (
        (0, 6e-8),
        (99, 6e-6),
        (100, 6e-6),
        (250, 4e-6),
        (400, 2e-6),
        (1700, (2e-6 + 2e-7) / 2),
        (3000, 2e-7),
    ):
        assert table_5.at(step) == pytest.approx(lr), f"step {step}"
    assert Schedule(steps=100).at(50) == pytest.approx(0.5)
    with pytest.raises(InputError, match="convert_step"):
        Schedule(steps=100, warmup_steps=10, convert_lr=0.5, convert_step=100)
