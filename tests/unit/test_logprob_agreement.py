"""Sampler and scorer round differently in half precision: that neither stops a run nor is clipped,
and errors are found."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.errors import Stopped
from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.rewards.reward import Score
from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.logprob_agreement import LIMITS, Agreement
from secondlook.train.rl.loop import RLLoop
from secondlook.train.rl.losses import importance_weights, policy_loss
from secondlook.train.rl.micro_batches import pack
from secondlook.train.rl.trajectory import TrajectoryTurn
from secondlook.types import Prompt, SamplingParams, TokenIds, Turn


class Bright:
    """A toy judge: every picture has a value of its own."""

    def __call__(self, items):
        values = [float(np.asarray(image).mean()) / 255 for _, image in items]
        return [Score(v, v > 0.6, "it is bright") for v in values]


@pytest.fixture
def no_group_is_left():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_clipping_acts_on_updates_and_not_on_rounding(tmp_path, algorithm, no_group_is_left):
    """In bfloat16 with guidance 5, at a rate of 0: what is clipped then is rounding alone."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a red star\na photo of two cats\n")
    config = RLConfig(
        model="mini-base",
        prompts=str(prompts),
        algorithm=algorithm,
        rollout={"prompts_per_step": 2, "group_size": 8, "rounds": 1, "guidance": 5.0},
        loss={"beta": 0.0},
        ppo={"value_warmup_steps": 0, "value_epochs": 1},
        optim={"lr": 0.0, "min_lr": 0.0, "warmup_steps": 0, "epochs": 1, "minibatches": 2},
        runtime={"device": "cpu", "dtype": "bfloat16", "micro_batch_size": 5},
    )
    told = RLLoop(config, tmp_path, Bright()).step(0)
    assert told["sampler_outside"] > 0.002, (
        "to the recorded log-probabilities some ratios are outside of the clip range"
    )
    assert told["clipped"] == told["clipped_first"] == 0, (
        "to those that were scored before the update none is"
    )
    assert (
        0.9 < told["importance"] < 1.1
        and told["sampler_gap"] > told["sampler_gap_99"] > told["sampler_gap_mean"] > 0
    )


def test_what_the_sampler_had_in_their_stead_weighs_the_tokens():
    old, behaviour = (
        torch.log(torch.tensor([0.5, 0.9, 0.2])),
        torch.log(torch.tensor([0.5, 0.1, 0.4])),
    )
    weights = importance_weights(old, behaviour, 2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, 0.5]) and importance_weights(
        old, behaviour, 0.0
    ).tolist() == [1, 1, 1]
    ones, logp = torch.ones(3), old.clone().requires_grad_()
    out = policy_loss(logp, old, old, ones, ones, 1.0, 0.2, 0.0, importance=weights)
    out.loss.backward()
    assert logp.grad.tolist() == pytest.approx([-1.0, -2.0, -0.5]) and int(out.clipped) == 0
    logp = old.clone().requires_grad_()
    policy_loss(
        logp, old, old - 0.1, 0 * ones, ones, 1.0, 0.2, 0.5, importance=weights
    ).loss.backward()
    assert logp.grad.tolist() == pytest.approx([logp.grad[0].item()] * 3), "the KL is not weighed"


def learned(turns: list[Turn]) -> list[TrajectoryTurn]:
    """Sampled turns, numbered as those that a step learns from."""
    return [
        TrajectoryTurn(turn.kind, 0.5, turn, advantage=1.0, index=i) for i, turn in enumerate(turns)
    ]


def batch_of(gaps, sampling_params=SamplingParams("code")):
    """A batch of turns of 100 tokens that were recorded at -1, and scores that differ by ``gaps``
    (turns, tokens)."""
    gaps = torch.as_tensor(gaps, dtype=torch.float32)
    turns = [
        Turn(
            "draw",
            (TokenIds((1,)),),
            (0,) * gaps.shape[1],
            (-1.0,) * gaps.shape[1],
            sampling_params,
            0,
        )
        for _ in gaps
    ]
    [batch] = pack(learned(turns), len(turns))
    return batch, gaps.flatten() - 1


def agreement(ranks=ProcessGroup(), dtype="bfloat16") -> Agreement:
    return Agreement(*LIMITS[dtype], 0.2, 0.2, 2.0, ranks)


def test_one_token_that_is_far_off_stops_nobody():
    gaps = 0.01 * np.random.default_rng(0).normal(size=(10, 100))
    gaps[3, 7] = 6.0
    one = agreement()
    one.add(*batch_of(gaps))
    told = one.check()
    assert told["sampler_gap"] == pytest.approx(6.0) and told["sampler_outside"] == pytest.approx(
        1e-3
    )
    assert told["sampler_gap_mean"] < 0.02 and told["importance"] == pytest.approx(
        1 + 1e-3, abs=1e-3
    ), "cut off at 2"


@pytest.mark.parametrize(
    "kind", ["all a little", "some far", "the verdicts alone", "not a number", "impossible"]
)
def test_disagreement_is_refused(kind):
    gaps = np.zeros((10, 100))
    sampling_params = SamplingParams("text", first=(5, 6))
    if kind == "the verdicts alone":  # 1 % of the tokens
        gaps[:, 0] = 0.1
    else:
        gaps[:, :3] = {
            "all a little": 0.0,
            "some far": 1.0,
            "not a number": np.nan,
            "impossible": -np.inf,
        }[kind]
        gaps += 0.05 * (kind == "all a little")
    one = agreement()
    one.add(*batch_of(gaps, sampling_params))
    with pytest.raises(Stopped, match="verdicts" if kind == "the verdicts alone" else "disagree"):
        one.check()


def test_guidance_enlarges_rounding_and_what_is_allowed():
    for guidance, refused in ((1.0, True), (5.0, False)):
        one = agreement()
        one.add(*batch_of(np.full((2, 100), 0.1), SamplingParams("code", guidance=guidance)))
        if refused:
            with pytest.raises(Stopped, match="guidance 1 differ"):
                one.check()
        else:
            one.check()


def test_all_ranks_decide_alike_also_one_that_had_nothing():
    """What one rank has seen stops all of them."""
    bad = agreement()
    bad.add(*batch_of(np.full((1, 100), 0.1)))
    theirs = {key: np.concatenate(values) for key, values in bad.differences.items()}

    class Second(ProcessGroup):
        def all_gather(self, value):
            return [theirs, value]

    with pytest.raises(Stopped, match="disagree"):
        agreement(Second(1, 2)).check()


def test_errors_are_told_from_rounding():
    """A scorer in bfloat16 that is right, one with another guidance, and one whose verdicts are not
    restricted."""
    janus = Janus.load("mini", dtype=torch.bfloat16)
    engine = Engine(janus)
    prompts = [
        Prompt(f"a photo of {what}") for what in ("a red star", "two cats", "three keys", "a cup")
    ] * 6
    turns = [
        t
        for e in run_episodes(engine, prompts, list(range(24)), 1, SamplingConfig(5.0, 1.0, 0, 0))
        for t in e.turns
    ]

    def check(change=lambda sampling_params: sampling_params) -> dict[str, float]:
        one = agreement()
        for batch in pack(learned(turns), 64):
            asked = [replace(t, sampling_params=change(t.sampling_params)) for t in batch.turns]
            with torch.no_grad():
                one.add(batch, sampling.score(janus, engine.template, asked))
        return one.check()

    assert check()["sampler_gap_mean"] < 0.05
    with pytest.raises(Stopped, match="codes drawn with guidance 5 differ"):
        check(
            lambda sampling_params: (
                replace(sampling_params, guidance=4.0)
                if sampling_params.guidance == 5
                else sampling_params
            )
        )
    with pytest.raises(Stopped, match="verdicts differ"):
        check(lambda sampling_params: replace(sampling_params, first=()))
