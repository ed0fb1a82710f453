"""What ends a long run of RL late, or on one rank alone: found before step 0, survived, or told to
all ranks."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import RL
from secondlook.config import changed, parse
from secondlook.data.prompts import read_prompts
from secondlook.end_request import EndRequested
from secondlook.errors import InputError, Stopped
from secondlook.mini.verifier import Verifier
from secondlook.models import sampling
from secondlook.models.janus.checkpoint import load_tokenizer
from secondlook.models.janus.template import ChatTemplate
from secondlook.rewards.reward import Score, Weighted
from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.config import RewardChecksConfig, RLConfig
from secondlook.train.rl.episode_pages import write_page
from secondlook.train.rl.loop import RLLoop, train_rl
from secondlook.train.rl.micro_batches import minibatches
from secondlook.train.rl.prompt_checks import check_lines
from secondlook.train.rl.reward_checks import RewardChecks
from secondlook.train.rl.rollout import check_reasons, describe, gather_trajectories
from secondlook.train.rl.trajectory import Trajectory, TrajectoryTurn
from secondlook.train.rl.turn_weights import select_turns
from secondlook.train.termination import Saved
from secondlook.types import Episode, Prompt, Round, SamplingParams


class Bright:
    """A toy judge of pictures, not of edits."""

    def __call__(self, items):
        values = [float(np.asarray(image).mean()) / 255 for _, image in items]
        return [Score(v, v > 0.6, "it is bright") for v in values]


class EditsToo(Bright):
    def edits(self, items):
        return self([(text, image) for text, _, image in items])


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(load_tokenizer("mini"))


def written(tmp_path, rows, name="prompts.jsonl"):
    path = tmp_path / name
    lines = [json.dumps(r) for r in rows] if name.endswith("jsonl") else rows
    path.write_text("".join(f"{line}\n" for line in lines))
    return read_prompts(path)


def test_prompts_that_cannot_be_read_are_found_with_their_line(tmp_path, template):
    fine = ["a photo of a red star"] * 3
    check_lines(template, Bright(), written(tmp_path, fine, "prompts.txt"))
    lines = written(
        tmp_path, [*fine, "a red star and " * 200, *fine, "a cat and " * 250], "prompts.txt"
    )
    with pytest.raises(
        InputError, match=r"tokens; at most 512 are read, in line 4 of .*prompts.txt \(and 1 more"
    ):
        check_lines(template, Bright(), lines)


def test_sources_that_cannot_be_opened_are_found_with_their_line(tmp_path, template):
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    rows = [
        {"prompt": "make it red", "source": f"{name}.png"}
        for name in ("whole", "cut", "whole", "cut")
    ]
    check_lines(template, EditsToo(), written(tmp_path, rows[:1]))
    with pytest.raises(InputError, match=r"line 2 of .*cut.png.*\(and 1 more such lines\)"):
        check_lines(template, EditsToo(), written(tmp_path, rows))


def test_prompts_that_nobody_can_score_are_found_with_their_line(tmp_path, template):
    Image.new("RGB", (48, 48), (200, 20, 20)).save(tmp_path / "red.png")
    edits = [{"prompt": "a photo of a star"}, {"prompt": "make it red", "source": "red.png"}]
    for judge, rows, word in (
        (Bright(), edits, "Bright cannot judge edits"),
        (Weighted([(1.0, EditsToo()), (1.0, Bright())]), edits, "Bright cannot judge edits"),
        (Verifier(), edits, "source"),
        (
            Verifier(),
            [{"prompt": "a photo of a star"}, {"prompt": "a photo of a unicorn"}],
            "unicorn",
        ),
    ):
        with pytest.raises(InputError, match=f"judge: .*{word}.*, in line 2 of"):
            check_lines(template, judge, written(tmp_path, rows))
    check_lines(template, Verifier(), written(tmp_path, edits[:1]))


class Two(ProcessGroup):
    """One of two ranks; ``other`` is what the second one says."""

    other = None

    def all_gather(self, value):
        return [value, self.other]


def test_what_one_rank_finds_all_raise():
    first = Two(0, 2)
    with first.all_raise():
        pass
    with pytest.raises(Stopped, match="mine"), first.all_raise():
        raise Stopped("mine")
    object.__setattr__(first, "other", InputError("line 7 of prompts.txt"))
    with pytest.raises(InputError, match="line 7"), first.all_raise():
        pass


def test_a_job_refuses_such_a_file_before_it_loads_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "secondlook.train.rl.loop.Janus.load", lambda *a: pytest.fail("a model was loaded")
    )
    (tmp_path / "prompts.txt").write_text("a photo of a star\n" + "a red star and " * 200)
    config = RLConfig(model="mini-base", prompts=str(tmp_path / "prompts.txt"))
    with pytest.raises(InputError, match="line 2 of"):
        RLLoop(config, tmp_path, Bright())


def group_of(values: list[float], number: int) -> list[Trajectory]:
    """Episodes of one image with these scores (NaN: missing)."""
    image = Image.new("RGB", (8, 8))
    trajectories = []
    for value in values:
        score = None if math.isnan(value) else Score(value, value > 0.5, "r")
        rounds = (Round(image, (1,), True, 0.9, "r"),)
        episode = Episode(Prompt(f"p{value}"), 0, rounds, ())
        trajectories.append(Trajectory.of_episode(episode, [score], number))
    return trajectories


def test_the_page_of_a_step(tmp_path):
    nan = math.nan
    without, wide, narrow = [nan, nan], [0.1, nan, 0.75], [0.5, 0.625]
    flat, alone = [0.25, 0.25, 0.25], [nan, 0.875]
    groups = [without, flat, wide, narrow]
    trajectories = [t for number, group in enumerate(groups) for t in group_of(group, number)]
    reward, drawing, verdict = 1.5, (0.5, 1.0), nan
    best = trajectories[7]
    best.turns = [
        TrajectoryTurn("draw", 0.75, reward=reward, advantage=drawing, advantage_scale=2.0),
        TrajectoryTurn("judge", 0.75, advantage=verdict),
    ]
    shown = write_page(tmp_path, trajectories, 7)
    page = (tmp_path / "episodes" / "step-7.html").read_text()
    expected = [
        "final images score from 0.100 to 0.750 (2 of 3 episodes have a score)",
        ">best<",
        ">score 0.750<",
        "right",
        "drawing: reward 1.50, advantage +1.50",
        "verdict: masked, for want of a score",
        ">worst<",
        ">score 0.100<",
        "wrong",
        "final images score from 0.500 to 0.625 (2 of 2 episodes have a score)",
        ">score 0.625<",
        ">score 0.500<",
        "flat group: all final images score 0.250 (3 of 3 episodes have a score)",
        ">one of them<",
        ">score 0.250<",
    ]
    for text in expected:
        assert text in page, text
        page = page[page.index(text) + len(text) :]  # in this order
    assert "<img" not in page, "a flat group's episode is there once"
    assert [episode.prompt.text for episode in shown] == [
        "p0.75",
        "p0.1",
        "p0.625",
        "p0.5",
        "p0.25",
    ]

    write_page(tmp_path, group_of(alone, 0), 8)
    page = (tmp_path / "episodes" / "step-8.html").read_text()
    assert "1 of 2 episodes have a score: 0.875" in page and "flat" not in page
    write_page(tmp_path, group_of(without, 0), 9)
    assert not (tmp_path / "episodes" / "step-9.html").exists()


class Listening(ProcessGroup):
    """The first of two ranks, which keeps what it was given for the other."""

    def all_gather(self, value):
        object.__setattr__(self, "told", value)
        return [value, group_of([0.25], 1)]


def test_ranks_tell_each_other_scores_and_verdicts_but_no_pictures():
    ranks = Listening(0, 2)
    own = [*group_of([0.5, 0.75], 0), *group_of([0.1], 2)]
    everyone = gather_trajectories(own, ranks)
    assert [t.image_scores for t in everyone] == [[0.5], [0.75], [0.25], [0.1]]
    assert everyone[0] is own[0] and everyone[3] is own[2], "its own keep their pictures"
    for trajectory in ranks.told:
        assert trajectory.episode is None and trajectory.scores and trajectory.verdicts == (True,)
        assert all(turn.sampled is None for turn in trajectory.turns)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_step_with_fewer_turns_than_minibatches(tmp_path, algorithm):
    parts = minibatches(np.random.default_rng(0), 3, 8)
    assert sorted(number for part in parts for number in part) == [0, 1, 2]
    (tmp_path / "prompts.txt").write_text("a photo of a red star\n")
    config = RLConfig(
        model="mini-base",
        prompts=str(tmp_path / "prompts.txt"),
        algorithm=algorithm,
        rollout={"prompts_per_step": 1, "group_size": 2, "rounds": 1},
        advantage={"credit": "segment"},
        ppo={"value_warmup_steps": 0, "value_epochs": 1},
        optim={"minibatches": 7, "epochs": 1},
        runtime={"device": "cpu"},
    )
    metrics = RLLoop(config, tmp_path, Bright()).step(0)
    assert math.isfinite(metrics["loss"]) and metrics["refused_steps"] == 0


def step_metrics(yes_rate: float, agreement: float) -> dict[str, float]:
    return {"missing": 0.0, "yes_rate": yes_rate, "agreement": agreement}


def with_advantage(advantage: float) -> list[Trajectory]:
    """A group of one episode whose drawing has this advantage."""
    turns = [
        TrajectoryTurn("draw", 0.5, advantage=advantage),
        TrajectoryTurn("judge", 0.5, advantage=0.0),
    ]
    return [Trajectory(0, (Score(0.5, True, "r"),), (True,), (0.9,), 0, turns)]


def test_a_good_judge_of_easy_prompts_is_not_stopped_but_a_collapsed_one_is():
    config = RewardChecksConfig(max_flat_steps=5, max_single_verdict_steps=20)
    checks = RewardChecks(config)
    varied, flat = with_advantage(1.0), with_advantage(0.0)
    for _ in range(100):
        checks.check(step_metrics(0.995, 0.98), varied)
    for _ in range(19):
        checks.check(step_metrics(1.0, 0.8), varied)
    resumed = RewardChecks(config)
    resumed.load_state_dict(checks.state_dict())
    with pytest.raises(Stopped, match=r"20 steps in a row had one verdict only .* 20% are wrong"):
        resumed.check(step_metrics(1.0, 0.8), varied)
    checks.check(step_metrics(0.9, 0.8), varied)
    for _ in range(4):
        checks.check(step_metrics(0.5, 0.5), flat)
    with pytest.raises(Stopped, match="5 steps in a row had no variance"):
        checks.check(step_metrics(0.5, 0.5), flat)


def test_verdicts_that_are_not_taught_may_collapse():
    checks = RewardChecks(RewardChecksConfig(max_single_verdict_steps=1), verdicts_learn=False)
    checks.check(step_metrics(1.0, 0.1), with_advantage(1.0))


def test_the_last_layers_gradient_is_summed_in_float32(monkeypatch):
    """Of 256 parts in bfloat16, against float64: what is left is the products' rounding (summed in
    bfloat16: .019)."""
    rng = torch.Generator().manual_seed(0)
    n, width, vocabulary = 2048, 32, 64
    monkeypatch.setattr(sampling, "AT_ONCE", 8 * vocabulary)
    features = torch.randn(n, width, generator=rng).bfloat16()
    weight = (0.2 * torch.randn(vocabulary, width, generator=rng)).bfloat16().requires_grad_()
    bias = torch.zeros(vocabulary).bfloat16().requires_grad_()
    tokens = torch.randint(0, vocabulary, (n,), generator=rng)
    wanted = torch.rand(n, generator=rng)
    logp = sampling._TokenLogProbs.apply(
        SamplingParams("code"), features, weight, bias, tokens, torch.zeros(n, dtype=torch.bool)
    )
    (logp * wanted).sum().backward()
    exact_weight, exact_bias = (p.detach().double().requires_grad_() for p in (weight, bias))
    logits = torch.nn.functional.linear(features.double(), exact_weight, exact_bias)
    (logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1) * wanted).sum().backward()
    for p, exact in ((weight, exact_weight), (bias, exact_bias)):
        assert (
            p.grad.double() - exact.grad
        ).norm() < 0.005 * exact.grad.norm() and p.grad.dtype == torch.bfloat16


def test_a_step_that_was_given_up_while_its_judge_was_waited_for_is_done_again(tmp_path):
    """To the same bits: its questions are not taken for missing."""

    class AskedToEnd(Verifier):
        calls = 0

        def __call__(self, items):
            self.calls += 1
            if self.calls == 3:  # after the sanity pairs and one step
                raise EndRequested("asked to end while it waited")
            return super().__call__(items)

    small = {"prompts_per_step": 1, "group_size": 2, "rounds": 1}
    config = parse(RLConfig, RL | {"steps": 2, "rollout": small})
    config = changed(config, {"runtime.save_every": 100})
    train_rl(config, tmp_path / "whole", Verifier())
    with pytest.raises(Saved, match=r"amid step 2, which is given up.*the state of step 1"):
        train_rl(config, tmp_path / "cut", AskedToEnd())
    train_rl(config, tmp_path / "cut", Verifier())
    whole, cut = (tmp_path / run / "final" / "model.safetensors" for run in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_groups_that_share_a_wrong_first_image(tmp_path, algorithm):
    """Nothing is learned from it; what follows has seeds of its own, and reasons their truth."""
    settings = RL | {
        "model": "mini-base",
        "algorithm": algorithm,
        "ppo": {"value_warmup_steps": 0, "value_epochs": 1},
        "prompts": "mini",
        "prompt_options": {"kinds": {"position": 0.5, "color_attr": 0.5}},
        "rollout": {"prompts_per_step": 3, "group_size": 4, "rounds": 2, "repair_groups": 2},
        "advantage": {"credit": "expected", "reason_weight": 1.0, "progress_weight": 0.5},
        "runtime": {"device": "cpu"},
    }
    loop = RLLoop(parse(RLConfig, settings), tmp_path)
    rng, alone = np.random.default_rng([0, 0]), np.random.default_rng([0, 0])
    trajectories = loop.roll_out_and_score(rng, 0)
    loop.prompts.draw(alone, 3, [0, 1, 2])
    assert rng.random() == alone.random(), "minibatches do not depend on a rank's wrong images"
    whole, repairs = trajectories[:12], trajectories[12:]
    assert len(repairs) == 8 and all(t.is_repair for t in repairs)
    assert [t.group for t in repairs] == [3] * 4 + [4] * 4
    wrong_firsts = {t.episode.turns[0].tokens for t in whole if not t.scores[0].correct}
    for group in (repairs[:4], repairs[4:]):
        [first] = {t.episode.turns[0].tokens for t in group}
        assert first in wrong_firsts and {t.scores[0] for t in group} == {group[0].scores[0]}
        redraws = [t.episode.turns[2].tokens for t in group if len(t.episode.turns) > 2]
        assert len(set(redraws)) == len(redraws), "each goes on from a seed of its own"
    told = [truth for t in trajectories for truth in t.reason_truths if not math.isnan(truth)]
    assert told and all(0 <= truth <= 1 for truth in told)
    loop.set_advantages(trajectories)
    assert not any(turn.is_masked for t in trajectories for turn in t.turns)
    selected = select_turns(trajectories, loop.config.advantage, "turn", 99)
    firsts = {id(t.turns[0]): t.is_repair for t in trajectories}
    assert not any(firsts.get(id(turn), False) for turn in selected)
    assert len(selected) == sum(len(t.turns) for t in trajectories) - 8
    metrics = describe(trajectories)
    assert metrics["images"] == sum(len(t.scores) for t in trajectories) - 8, "shared ones once"
    assert metrics["first"] == np.mean([t.scores[0].correct for t in whole]), "of whole episodes"
    assert 0 <= metrics["repaired"] <= 1 and metrics["reason_true"] == pytest.approx(np.mean(told))
    assert math.isfinite(loop.step(1)["loss"])


def test_settings_of_repairs_are_checked(tmp_path):
    with pytest.raises(InputError, match="repair_groups is 2, but no image is drawn again"):
        parse(RLConfig, {"model": "mini", "rollout": {"rounds": 1, "repair_groups": 2}})
    trajectory = Trajectory(0, (Score(0.1, False, "r"),), (False,), (0.2,), 0)
    with pytest.raises(
        InputError, match="reason_weight needs a reward that checks reasons; Bright"
    ):
        check_reasons(Bright(), [trajectory])
