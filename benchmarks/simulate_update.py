"""The update of a recipe at its full size, without weights: the job's own code under FSDP2, on a
process group that moves nothing, with tensors that have a shape and no numbers. What a rank holds
is counted as tensors come and go.

As on a GPU: attention by the flash kernel for sequences of many lengths, the optimizer over lists
of tensors (foreach). As in ``plan``, fragments and the CUDA context are not counted. A reference in
the CPU's memory is counted as if it lay on the device.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secondlook.config import changed
from secondlook.data.sft_dataset import Example, Scored
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import ChatTemplate
from secondlook.rewards.reward import Score
from secondlook.train import memory_plan, model_sizes
from secondlook.train.activation_checkpointing import activation_checkpointing
from secondlook.train.memory_plan import GIB, REASON, SPARE
from secondlook.train.model_sizes import PROMPT
from secondlook.train.optim import Optimizer
from secondlook.train.rl.algorithms.ppo import PPO
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.critic import Critic
from secondlook.train.rl.loop import RLLoop
from secondlook.train.rl.trajectory import TrajectoryTurn
from secondlook.train.rl.turn_weights import weigh
from secondlook.train.sft import SFTJob
from secondlook.train.sft_config import SFTConfig
from secondlook.train.sft_data import SFTBatch
from secondlook.types import Turn
from simulate_memory import EqualRanks, Memory, weightless

# --- what the job is given ---


def prompt_of(template: ChatTemplate, tokens: int) -> str:
    """A text that fills a prompt's template to so many tokens."""
    text = "star"
    while len(template.draw(text)[1].ids) < tokens:  # type: ignore[union-attr]
        text += " star"
    return text


def picture(janus: Janus) -> Image.Image:
    return Image.new("RGB", (janus.image_size, janus.image_size))


def longest_turns(job: RLLoop, editing: bool) -> tuple[Turn, Turn]:
    """The last drawing and the last verdict of an episode that never said Yes."""
    janus, template, sampling = job.janus, job.engine.template, job.sampling
    prompt, history = prompt_of(template, PROMPT), job.config.rollout.rounds - 1
    codes, reason = (1,) * janus.n_codes, (template.no,) * (REASON - 1) + (template.eos,)
    source = codes if editing else ()
    if history:
        segments = template.redraw(prompt, [codes] * history, [reason] * history, source)
    else:
        segments = template.edit(source, prompt) if editing else template.draw(prompt)
    drawn = Turn("redraw", segments, codes, (-1.0,) * len(codes), sampling.draw_params(editing), 0)
    pictures = [picture(janus) for _ in range(history + 1)]
    segments = template.judge(
        prompt, pictures, [reason] * history, picture(janus) if editing else None
    )
    sampling_params = sampling.judge_params(template.yes, template.no)
    return drawn, Turn("judge", segments, reason, (-1.0,) * len(reason), sampling_params, 0)


def optimizer_step(optimizer: Optimizer, memory: Memory) -> None:
    """The first step, which leaves the optimizer's state; later ones only clear gradients, for they
    hold no more."""
    fill_gradients(optimizer)
    with memory.phase("optimizer"):
        optimizer.step(1e-6)

    def only_clear(factor: float) -> dict[str, float]:
        optimizer.clear_gradients()
        return {"grad_norm": 1.0, "refused_steps": 0.0}

    optimizer.step = only_clear  # type: ignore[method-assign]


def fill_gradients(optimizer: Optimizer) -> None:
    """As after a micro-batch."""
    for p in optimizer.parameters:
        p.grad = torch.zeros_like(p)


def update_rl(config: RLConfig, ranks: int, memory: Memory, editing: bool) -> None:
    """A step's learning from one micro-batch of drawn and from one of written turns, each as a
    later one of its minibatch."""
    n_minibatches = config.optim.minibatches
    one_pass = {
        "model": "mini-base",
        "prompts": "mini",
        "sanity_pairs": "",
        "runtime.device": "cpu",
        "reward_checks.min_separation": 0.0,
        "optim.minibatches": 1,
        "optim.epochs": 1,
        "ppo.value_epochs": 1,
    }
    config = changed(config, one_pass)
    job = RLLoop(
        config,
        Path(),
        lambda items: [Score(1.0, True, "") for _ in items],
        EqualRanks(0, ranks, "cpu"),
    )
    learner = job.policy_update
    optimizer_step(learner.optimizer, memory)
    memory.watch(learner, "score_reference", "reference")
    batches = [micro_batch_of(turn, job) for turn in longest_turns(job, editing)]
    learner.set_idle([turns[0].turn for turns in batches])
    states: list[Tensor] = []  # held to the step's end
    if isinstance(job.algorithm, PPO):
        states = teach_critic(job, job.algorithm.critic, memory, batches, n_minibatches)
    update_minibatch = learner.update_minibatch

    def update_later(*args: Any, **kwargs: Any) -> Any:
        """As a later micro-batch, beside the gradients of earlier ones."""
        fill_gradients(learner.optimizer)
        return update_minibatch(*args, **kwargs)

    for name, turns in zip(("drawn turns", "written turns"), batches, strict=True):
        learner.set_idle([turns[0].turn])
        learner.update_minibatch = update_later  # type: ignore[method-assign]
        memory.watch(learner, "update_minibatch", name)
        with activation_checkpointing(job.janus, config.runtime.activation_checkpointing):
            learner.learn(
                np.random.default_rng(0),
                [replace(turn) for turn in turns],
                len(turns),
                lr=1e-6,
                step=config.ppo.value_warmup_steps,
                beta=config.loss.beta,
            )
    del states


def micro_batch_of(turn: Turn, job: RLLoop) -> list[TrajectoryTurn]:
    """The same turn as often as a micro-batch has turns."""
    config = job.config
    turns = []
    for number in range(config.runtime.micro_batch_size):
        of_trajectory = TrajectoryTurn(
            turn.kind, 1.0, turn, reward=1.0, advantage=1.0, index=number
        )
        weigh(of_trajectory, config.loss.reduction, job.janus.n_codes)
        turns.append(of_trajectory)
    return turns


def storage_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {s._cdata: s.nbytes() for s in map(Tensor.untyped_storage, tensors)}
    return sum(storages.values())


def teach_critic(
    job: RLLoop,
    critic: Critic,
    memory: Memory,
    batches: list[list[TrajectoryTurn]],
    n_minibatches: int,
) -> list[Tensor]:
    """The value head learns from a minibatch of its full size. Returns the states of all of a
    step's turns: passes are made for one micro-batch of a kind, and what it leaves is taken as
    often as there are turns."""
    config, width = job.config, job.janus.net.config.text_config.hidden_size
    episodes = memory_plan.episodes_of_rank(config, job.ranks.world_size)
    n_turns = episodes * config.rollout.rounds
    all_turns: list[TrajectoryTurn] = []
    all_states: list[Tensor] = []
    for turns in batches:
        copies = {turn.index: replace(turn) for turn in turns}
        with memory.phase("states of turns"):
            scored = job.policy_update.score_before(copies, [list(copies)])
        states = list(scored.values())
        # twice the width, where the states of the unconditional branch are held too
        columns = storage_bytes(states) // sum(map(len, states)) // states[0].itemsize
        n_tokens = len(turns[0].turn.tokens)
        held = torch.empty(n_turns * n_tokens, columns, dtype=states[0].dtype)
        all_states += held[:, :width].split(n_tokens)
        ones = (1.0,) * n_tokens
        for _ in range(n_turns):
            all_turns.append(replace(turns[0], values=ones, returns=ones, index=len(all_turns)))
        del scored, states
    memory.peaks["states of turns"] += storage_bytes(all_states) / GIB
    shuffled = np.random.default_rng(0).permutation(2 * n_turns)
    minibatch = np.array_split(shuffled, n_minibatches)[0].tolist()
    with memory.phase("value head"):
        critic.fit(all_turns, all_states, [minibatch], config.ppo.value_clip)
    return all_states


def update_sft(config: SFTConfig, ranks: int, memory: Memory, editing: bool) -> None:
    """One micro-batch a rank of each of the tasks, each as a later one of its step, with pictures
    that were not encoded yet."""
    micro_batch_size = config.runtime.micro_batch_size
    of_all_ranks = micro_batch_size * ranks
    without_data = {
        "runtime.device": "cpu",
        "runtime.dataloader_workers": 0,
        "data": [],
        "batch_size": of_all_ranks,
    }
    config = changed(config, without_data)
    with patch("secondlook.train.sft.Pool", lambda *args, **kwargs: SimpleNamespace(unused="")):
        job = SFTJob(config, EqualRanks(0, ranks, "cpu"))
    optimizer_step(job.optimizer, memory)
    prompt, side = prompt_of(job.template, PROMPT), job.janus.image_size
    reason = "No," + " star" * (REASON - 3)
    numbers = count()

    def scored() -> Scored:
        return Scored(next(numbers), 0.0, reason, Image.new("RGB", (side, side)))

    def examples(n_earlier: int) -> list[Example]:
        source = scored() if editing else None
        made = []
        for _ in range(micro_batch_size):
            earlier = tuple(scored() for _ in range(n_earlier))
            made.append(Example(prompt, earlier, scored(), source))
        return made

    def with_prompts(examples: list[Example]) -> list[tuple[Example, bool]]:
        return [(example, False) for example in examples]

    n = of_all_ranks
    drawn, redrawn = examples(0), examples(config.redraw_context)
    judged = examples(config.judge_context - 1)
    batches = {
        "drawn images": SFTBatch(with_prompts(drawn), [], [], (n, 0, 0)),
        "verdicts": SFTBatch([], [], judged, (0, 0, n)),
        "redrawn images": SFTBatch([], with_prompts(redrawn), [], (0, n, 0)),
    }
    for (name, batch), weight in zip(batches.items(), config.mix, strict=True):
        if weight:
            job.coming = iter([batch])
            fill_gradients(job.optimizer)
            with memory.phase(name):
                job.step(0)


# --- the part ---


def run(
    recipe: Path,
    config: RLConfig | SFTConfig,
    ranks: int,
    memory: float,
    model: str = "",
    **options: Any,
) -> dict:
    """Peaks in GiB of one update of ``recipe`` on each of ``ranks`` GPUs of ``memory`` GiB, beside
    the plan's account. ``model``: "1b", "7b" or a checkpoint; default: what the recipe's name
    says."""
    model, editing = model or model_sizes.model_of(recipe, config), model_sizes.edits(recipe)
    on_gpu = config.runtime.device.startswith("cuda")
    flash = on_gpu and config.runtime.dtype == "bfloat16"
    with weightless(model_sizes.config_of(model), ranks, flash) as held:
        if isinstance(config, RLConfig):
            update_rl(config, ranks, held, editing)
        else:
            update_sft(config, ranks, held, editing)
    highest_phase = max(held.peaks, key=held.peaks.__getitem__)
    largest_peak = held.peaks[highest_phase]
    account = memory_plan.account(model_sizes.sizes_of(model), config, ranks, editing)
    planned_gib = sum(account.update.values()) / GIB
    lines = [f"{name}: {peak:.2f} GiB" for name, peak in held.peaks.items()]
    lines.append(
        f"most: {largest_peak:.1f} GiB a rank ({highest_phase}); plan: {planned_gib:.1f} GiB "
        f"({planned_gib / largest_peak - 1:+.0%})"
    )
    if "value head" in held.peaks:
        lines.append(
            "states of turns are of two micro-batches, times their number; all else is counted "
            "from passes"
        )
    return {
        "name": "update",
        "peaks": held.peaks,
        "plan": planned_gib,
        "fits": largest_peak + SPARE / GIB <= memory,
        "lines": lines,
    }
