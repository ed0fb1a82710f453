"""Both stages on a tiny untrained model: data, exact resume, micro-batches, and the reward that goes up."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from secondlook.config import parse
from secondlook.data.sanity_pairs import read_sanity_pairs
from secondlook.data.build_config import BuildConfig
from secondlook.data.generate import build
from secondlook.data.generators import GeneratorConfig
from secondlook.data.sft_dataset import Pool
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.models import sampling as policy
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate
from secondlook.rewards.reward import Score
from secondlook.mini.verifier import Verifier
from secondlook.train.rl.micro_batches import pack
from secondlook.train.rl.reward_checks import check_reward
from secondlook.train.rl.losses import policy_loss
from secondlook.train.rl.loop import RLLoop, train_rl
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.rollout import describe, rollout, score_episodes
from secondlook.train.rl.turn_weights import total_weight, weigh
from secondlook.train.trainer import Trainer
from secondlook.train.sft import SFTConfig, train_sft
from secondlook.errors import InputError, Stopped
from secondlook.types import Prompt
from secondlook.mini.world.language import benchmark


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def start(janus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    janus.net.generation_config.guidance_scale = 1.0
    janus.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def mini():
    """The shipped base: pictures pass through its image tokenizer, and an untrained one makes noise of them."""
    return Engine(Janus.load(locate("mini-base")))


RENDER, DRAW = GeneratorConfig("render", "mini-base", 5), GeneratorConfig("model", "mini-base", 1)
DATA = BuildConfig([RENDER, DRAW], prompts="mini", n_prompts=30, shard=20)


@pytest.fixture(scope="module")
def data(mini, tmp_path_factory):
    return build(DATA, Verifier(), tmp_path_factory.mktemp("data"), lambda _: mini)


def killed_then_resumed(monkeypatch, train, at):
    """Run ``train`` until it has saved step ``at``, break it there, and run it again."""
    original = Trainer.save

    def save_once(self):
        original(self)
        if self.step == at:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save_once)
        with pytest.raises(Stop):
            train()
    torch.manual_seed(99)  # whatever the process did in between must not matter
    train()


def same_weights(a, b) -> bool:
    left, right = (load_file(p / "final" / "model.safetensors") for p in (a, b))
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_sampled_pictures_carry_the_verifiers_verdict(data, mini):
    manifest = json.loads((data / "manifest.json").read_text())
    assert len(manifest["shards"]) == 2
    sources = manifest["sources"]
    assert [sources["render"][k] for k in ("pictures", "right", "missing", "negatives")] == [30, 30, 0, 0]
    assert sources["near miss"]["right"] == 0 and 60 < sources["near miss"]["pictures"] <= 120, "none twice"
    pool = Pool(data)
    rng = np.random.default_rng(0)
    for _ in range(50):
        chosen = pool.drawing(rng), *pool.judging(rng), pool.redrawing(rng)
        drawn, right, wrong, redrawn = map(pool.read, chosen)
        assert drawn.target.score >= 0.8 and not drawn.earlier
        assert all(s.score < 0.5 for e in (right, wrong, redrawn) for s in e.earlier)
        assert right.prompt == wrong.prompt and right.target.score >= 0.7 and wrong.target.score < 0.5
        assert right.target.reason.startswith("Yes") and wrong.target.reason.startswith("No")
        assert redrawn.target.score >= 0.8 and 1 <= len(redrawn.earlier) <= 2
        assert wrong.target.index not in {s.index for s in wrong.earlier}
    before = {p.name: p.read_bytes() for p in data.glob("images-*.parquet")}
    (data / "images-00001.parquet").unlink()
    build(DATA, Verifier(), data, lambda _: mini)
    assert {p.name: p.read_bytes() for p in data.glob("images-*.parquet")} == before, "a shard made again is the same"
    with pytest.raises(InputError, match="n_prompts"):
        build(replace(DATA, n_prompts=20), Verifier(), data, lambda _: mini)


def test_a_picture_without_a_score_is_counted_and_taught_to_nobody(mini, tmp_path):
    class Half(Verifier):
        def __call__(self, items):
            return [s if i % 2 else None for i, s in enumerate(super().__call__(items))]

    build(replace(DATA, n_prompts=20, generators=[RENDER], examples="none"), Half(), tmp_path, lambda _: mini)
    sources = json.loads((tmp_path / "manifest.json").read_text())["sources"]
    missing, pictures = (sum(row[k] for row in sources.values()) for k in ("missing", "pictures"))
    assert pictures > 60 and missing == -(-pictures // 2)
    pool = Pool(tmp_path)
    used = {i for part in (pool.bad, pool.draw, pool.judge) for i in part.rows.tolist()}
    assert used and all(pool.rows[i]["score"] is not None for i in used)


def test_verifier_has_no_score_for_words_it_does_not_know():
    spec = benchmark()[0]
    grey = Image.new("RGB", (48, 48), (153,) * 3)
    known, unknown = Verifier()([(spec.prompt, grey), ("a photo of a unicorn", grey)])
    assert known is not None and not known.correct and unknown is None


def test_sft_resumes_exactly_and_learns(data, start, tmp_path, monkeypatch):
    config = SFTConfig(
        model=start,
        data=str(data),
        steps=30,
        batch_size=16,
        ema_decay=0.9,
        optim={"lr": 3e-3, "warmup_steps": 3},
        runtime={"device": "cpu", "log_every": 5, "save_every": 10},
    )
    train_sft(config, tmp_path / "whole")
    killed_then_resumed(monkeypatch, lambda: train_sft(config, tmp_path / "cut"), 10)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    for name in ("draw_loss", "redraw_loss", "reason_loss"):
        assert rows[-1][name] < rows[0][name] - 0.3


def sampled(engine, prompts, group_size, rounds, reward):
    """Trajectories of a group for each prompt."""
    seeds = [group_size * i for i in range(len(prompts))]
    sampling = SamplingConfig(guidance=1.0)
    episodes = rollout(engine, prompts, group_size, rounds, seeds, sampling)
    return score_episodes(reward, episodes, range(len(prompts)))


def test_micro_batches_equal_one_large_batch(engine):
    prompts = [Prompt("a photo of a red star"), Prompt("a photo of two cats")]
    trajectories = sampled(engine, prompts, 4, 2, Verifier())
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    values = np.random.default_rng(0).normal(size=len(turns)).tolist()
    for turn, value in zip(turns, values, strict=True):
        turn.advantage = value
        weigh(turn)
    parameters = [p for p in engine.janus.net.model.language_model.parameters() if p.requires_grad]
    gradients = []
    for size in (64, 1):
        for p in parameters:
            p.grad = None
        for batch in pack(turns, size):
            logp = policy.score(engine.janus, engine.template, batch.turns)
            behaviour = batch.behaviour_logprobs
            policy_loss(
                logp, behaviour, behaviour - 0.1, batch.advantages, batch.weights, total_weight(turns)
            ).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    for p in parameters:
        p.grad = None
    assert gradients[0].norm() > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


class Red:
    """A toy judge: how red a picture is; an untrained decoder's pictures differ little."""

    def __call__(self, items):
        shares = [np.asarray(image, np.float64).mean((0, 1)) for _, image in items]
        values = [float(np.clip(0.5 + 300 * (s[0] / s.sum() - 0.3076), 0, 1)) for s in shares]
        return [Score(v, v > 0.6, "it is red") for v in values]


TOY = {
    "rollout": {"prompts_per_step": 2, "group_size": 16, "rounds": 1},
    "loss": {"beta": 0.0},
    "optim": {"lr": 4e-3, "min_lr": 4e-3, "warmup_steps": 0},
    "runtime": {"device": "cpu", "log_every": 1},
}


class RedObjects:
    """A toy judge of the shipped base: how near to red the pixels are that are not background. Every colour has a value of its
    own, so that no group is without variance, whatever a machine's rounding makes the sampler draw."""

    def __call__(self, items):
        scores = []
        for _, image in items:
            pixels = np.asarray(image, np.float64)
            drawn = np.abs(pixels - 153).max(-1) > 60
            near = 1 - np.abs(pixels - (220, 30, 30)).mean(-1) / 255
            value = float(near[drawn].mean()) if drawn.any() else 0.0
            scores.append(Score(value, value > 0.9, "it is red"))
        return scores


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_reward_goes_up(tmp_path, algorithm):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a photo of a {name}\n" for name in ("star", "cat", "key", "cup")))
    config = RLConfig(
        model="mini-base",
        prompts=str(prompts),
        steps=10,
        algorithm=algorithm,
        rollout={"prompts_per_step": 4, "group_size": 8, "rounds": 1},
        advantage={"credit": "segment"},
        loss={"beta": 0.0},
        ppo={"value_warmup_steps": 1},
        optim={"lr": 3e-4, "min_lr": 3e-4, "warmup_steps": 0},
        runtime={"device": "cpu", "log_every": 1, "save_every": 10},
        reward_checks={"max_flat_steps": 100},
    )
    train_rl(config, tmp_path / "whole", RedObjects())
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    first = [r["score_1"] for r in rows]
    assert np.mean(first[-3:]) > first[0] + 0.2, first
    moved = [r for r in rows if "loss" in r]  # PPO's values have a step's start
    assert len(moved) == 10 - (algorithm == "ppo") and sum(r["refused_steps"] for r in moved) == 0
    assert moved[0]["sampler_gap"] < 1e-4 and max(r["clipped"] for r in moved) > 0, "the ratio moves within a step"
    assert list((tmp_path / "whole" / "episodes").glob("*.html"))
    assert algorithm == "grpo" or rows[-1]["value_loss"] < rows[0]["value_loss"]


def job(start, tmp_path, reward, **sections) -> RLLoop:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red picture\n")
    config = RLConfig(model=start, prompts=str(prompts), **(TOY | sections))
    return RLLoop(config, tmp_path, reward)


def test_missing_scores_are_masked_counted_and_stop_the_run(start, tmp_path):
    class Failing(Red):
        def __call__(self, items):
            scores = super().__call__(items)
            return [None if i % 4 == 0 else s for i, s in enumerate(scores)]

    with pytest.raises(Stopped, match="missing"):
        job(start, tmp_path, Failing()).step(0)
    half = {"max_missing": 0.5}
    metrics = job(start, tmp_path, Failing(), reward_checks=half).step(0)
    assert 0.2 < metrics["missing"] < 0.3 and metrics["score_1"] > 0


def test_a_dead_reward_stops_the_run(start, tmp_path):
    class Dead:
        def __call__(self, items):
            return [Score(0.0, False, "nothing") for _ in items]

    once = {"max_flat_steps": 1}
    stuck = job(start, tmp_path, Dead(), advantage={"credit": "segment"}, reward_checks=once)
    with pytest.raises(Stopped, match="can"):
        check_reward(Dead(), [(Prompt("p"), None)], [(Prompt("p"), None)])
    trajectories = sampled(stuck.engine, [Prompt("a red picture")], 2, 1, Dead())
    for trajectory in trajectories:
        for turn in trajectory.turns:
            turn.advantage = 0.0
    with pytest.raises(Stopped, match="no variance"):
        stuck.reward_checks.check(describe(trajectories), trajectories)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_step_whose_groups_are_all_flat_changes_nothing(start, tmp_path, algorithm):
    class Same:
        def __call__(self, items):
            return [Score(1.0, True, "it is red") for _ in items]

    dropped = {"credit": "segment", "drop_flat_groups": True}
    flat = job(start, tmp_path, Same(), algorithm=algorithm, advantage=dropped)
    weights = flat.state()["net"]
    before = [p.clone() for p in weights.values()]
    metrics = flat.step(0)
    assert metrics["groups_with_variance"] == 0 and "loss" not in metrics
    assert all(torch.equal(a, b) for a, b in zip(before, weights.values(), strict=True))


def test_sanity_pairs_of_ones_own_prompts(start, tmp_path):
    Image.new("RGB", (48, 48), (200, 20, 20)).save(tmp_path / "red.png")
    Image.new("RGB", (48, 48), (20, 200, 20)).save(tmp_path / "green.png")
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "a red picture", "image": f"{color}.png", "good": color == "red"} for color in ("red", "green")]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    job(start, tmp_path, Red(), sanity_pairs=str(path))
    path.write_text("".join(json.dumps(r | {"good": not r["good"]}) + "\n" for r in rows))
    with pytest.raises(Stopped, match="tell them apart"):
        job(start, tmp_path, Red(), sanity_pairs=str(path))
    for bad, word in (
        ([rows[0]], "good = false"),
        ([rows[0] | {"good": "yes"}], "line 1"),
        ([*rows, {"prompt": "a red picture"}], "line 3"),
        ([*rows, rows[0] | {"image": "none.png"}], "none.png"),
    ):
        path.write_text("".join(json.dumps(r) + "\n" for r in bad))
        with pytest.raises(InputError, match=word):
            read_sanity_pairs(path)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_policy_whose_sampler_and_scorer_disagree_is_refused(start, tmp_path, monkeypatch, algorithm):
    broken = job(start, tmp_path, Red(), algorithm=algorithm)
    original = policy.evaluate
    monkeypatch.setattr(policy, "evaluate", lambda *a: (original(*a)[0] + 0.05, original(*a)[1]))
    for step in (0, 7):  # also where a run goes on
        with pytest.raises(Stopped, match="disagree"):
            broken.step(step)


def test_bad_configs_are_named(tmp_path):
    for bad, word in (
        ({"rollout": {"group_size": 1}}, "rollout.group_size = 1 .* at least 2"),
        ({"optim": {"epochs": 0}}, "optim.epochs"),
        ({"ppo": {"kl_in": "reward"}}, "ppo.kl_in"),
        ({"lora_rank": -1}, "lora_rank"),
    ):
        with pytest.raises(InputError, match=word):
            parse(RLConfig, {"model": "mini"} | bad)
    with pytest.raises(InputError, match="mix"):
        parse(SFTConfig, {"model": "mini", "data": "d", "mix": (0.0, 0.0, 0.0)})
    with pytest.raises(InputError, match="prompts"):
        RLLoop(RLConfig(model="mini", prompts=str(tmp_path / "none.txt")), tmp_path)
    with pytest.raises(InputError, match="data"):
        Pool(tmp_path)


TRAJECTORIES = Path(__file__).parents[1] / "golden" / "trajectories"


@pytest.fixture
def exact(monkeypatch):
    """Jobs in float64, so that twelve steps are the same on every machine (SECONDLOOK_WRITE_GOLDEN writes them anew)."""
    load = Janus.load
    monkeypatch.setattr(Janus, "load", lambda path, device="cpu", dtype=torch.float64: load(path, device, dtype))


SOME_OR_ALL = pytest.mark.parametrize("steps", [7, pytest.param(12, marks=pytest.mark.slow)])
"""Steps of a trajectory that are run; at the sixth some weights change to another optimizer's rate."""


def stop_after(monkeypatch, steps: int) -> None:
    """Interrupt the job once it has written the metrics of so many steps."""
    finish_step = Trainer.finish_step

    def finish_or_stop(self, *args, **kwargs):
        finish_step(self, *args, **kwargs)
        if self.step == steps:
            raise Stop

    monkeypatch.setattr(Trainer, "finish_step", finish_or_stop)


def check_trajectory(name: str, out: Path, keys: tuple[str, ...], steps: int) -> None:
    """The metrics of every step equal the stored ones."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {key: [row.get(key) for row in rows] for key in keys}
    path = TRAJECTORIES / f"{name}.json"
    if "SECONDLOOK_WRITE_GOLDEN" in os.environ and steps == 12:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    stored = json.loads(path.read_text())
    assert found.keys() == stored.keys() and len(rows) == steps
    for key, values in stored.items():
        for step, (a, b) in enumerate(zip(found[key], values[:steps], strict=True)):
            same = a == b if b is None else a == pytest.approx(b, rel=1e-3, abs=1e-6)
            assert same, f"{key} at step {step + 1}: {a} instead of {b}"


@SOME_OR_ALL
def test_sft_follows_its_golden_trajectory(tmp_path, exact, monkeypatch, steps):
    # the shipped base, in float64: an untrained image tokenizer or a float32 decoder may give another code on another machine
    exact_mini = Engine(Janus.load(locate("mini-base")))
    plain = replace(DATA, generators=[RENDER], examples="none")
    pictures = build(plain, Verifier(), tmp_path / "data", lambda _: exact_mini)
    config = SFTConfig(
        model="mini-base",
        data=str(pictures),
        steps=12,
        batch_size=12,
        optim={"lr": 1e-3, "warmup_steps": 3},
        runtime={"device": "cpu", "log_every": 1},
    )
    stop_after(monkeypatch, steps)
    with pytest.raises(Stop):
        train_sft(config, tmp_path / "run")
    keys = ("draw_loss", "redraw_loss", "verdict_loss", "reason_loss", "grad_norm", "lr")
    check_trajectory("sft", tmp_path / "run", keys, steps)


@SOME_OR_ALL
def test_grpo_follows_its_golden_trajectory(tmp_path, exact, monkeypatch, steps):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a star\na photo of two cats\n")
    config = RLConfig(
        model="mini-base",
        prompts=str(prompts),
        steps=12,
        rollout={"prompts_per_step": 2, "group_size": 4, "rounds": 2},
        loss={"beta": 0.05},
        optim={
            "lr": 2e-4,
            "convert_lr": 1e-4,
            "convert_step": 6,
            "min_lr": 1e-5,
            "warmup_steps": 2,
        },
        runtime={"device": "cpu", "log_every": 1},
        reward_checks={"max_flat_steps": 100},
    )
    stop_after(monkeypatch, steps)
    with pytest.raises(Stop):
        train_rl(config, tmp_path / "run", RedObjects())
    keys = ("score_1", "first", "yes_rate", "agreement", "loss", "kl", "clipped", "entropy", "grad_norm", "lr")
    check_trajectory("grpo", tmp_path / "run", keys, steps)
