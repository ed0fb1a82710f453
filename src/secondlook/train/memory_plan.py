"""What a rank holds of a GPU's memory, at the two peaks of a training job: while episodes are
drawn, and while the policy is updated.

An account of tensors. Drawing is counted where every verdict is No and the episodes are in step,
for a run may come to that. An update is counted at the highest of its moments; what is kept for the
gradient, per token and layer from the layers' own operations. ``benchmarks/simulate.py`` runs the
same at full size without weights, ``benchmarks/rl_step.py`` measures it (docs/LOG.md says how near
they come). Fragments and the CUDA context (a few GB) come on top: ``SPARE``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from secondlook.engine.capacity import Need
from secondlook.engine.image_codec import PIXELS
from secondlook.train.job_config import Checkpointing
from secondlook.train.model_sizes import ModelSizes
from secondlook.train.rl.config import RLConfig
from secondlook.train.sft_config import SFTConfig

GIB = 2**30
SPARE = 4 * GIB
REASON = 48
"""Tokens of a reason."""
SOURCE = 6
"""Tokens around the source of an edit."""
FLOAT32 = 4
"""Bytes of a number of trained weights, gradients and the optimizer, whatever is computed in."""

DEFAULT: dict[str, Any] = {
    "rollout": {"prompts_per_step": 128, "group_size": 7, "rollout_batch_size": 12},
    "runtime": {
        "micro_batch_size": 2,
        "dtype": "bfloat16",
        "activation_checkpointing": "full",
    },
}
"""The recipe 7b/grpo, as far as memory goes."""


@dataclass
class Plan:
    """Bytes of a rank by what they are for, at the two peaks."""

    rollout: dict[str, float] = field(default_factory=dict)
    update: dict[str, float] = field(default_factory=dict)

    @property
    def peak(self) -> float:
        return max(sum(self.rollout.values()), sum(self.update.values()))


@dataclass(frozen=True)
class Division:
    """How a job's weights lie on its ranks."""

    itemsize: int
    """Bytes of a number that is computed with."""
    is_sharded: bool
    shard_degree: int
    """Ranks that share one copy of the weights."""
    has_replicas: bool
    learned_params: int
    """Those that are trained: all but the frozen encoders', or the adapters'."""

    @staticmethod
    def of(sizes: ModelSizes, config: RLConfig | SFTConfig, num_ranks: int) -> Division:
        is_half = config.runtime.dtype == "bfloat16"
        is_sharded = num_ranks > 1 or is_half
        shard_degree = (config.runtime.dp_shard_degree or num_ranks) if is_sharded else 1
        learned_params = sizes.trained_params
        if config.lora_rank:
            learned_params = config.lora_rank * sizes.rank_1_params
        return Division(
            itemsize=2 if is_half else FLOAT32,
            is_sharded=is_sharded,
            shard_degree=shard_degree,
            has_replicas=is_sharded and shard_degree < num_ranks,
            learned_params=learned_params,
        )


def account(
    sizes: ModelSizes, config: RLConfig | SFTConfig, num_ranks: int, editing: bool = False
) -> Plan:
    """What a rank of ``num_ranks`` holds when it runs ``config`` on a model of these sizes.
    ``editing``: prompts have sources."""
    if isinstance(config, SFTConfig) and config.judge_rereads is not None:
        sizes = replace(sizes, judge_rereads=config.judge_rereads)
    division = Division.of(sizes, config, num_ranks)
    itemsize, shard_degree = division.itemsize, division.shard_degree
    learned_bytes = division.learned_params * FLOAT32
    weights = sizes.trained_params * FLOAT32 / shard_degree
    if config.lora_rank:  # the base is frozen and may be in half precision
        weights = sizes.trained_params * itemsize / shard_degree + learned_bytes / shard_degree
    frozen_encoders = sizes.frozen_params * itemsize
    always = {
        "weights": weights,
        "optimizer": 2 * learned_bytes / shard_degree,  # AdamW's two moments
        "frozen encoders": frozen_encoders,
    }
    update = highest_moment(sizes, config, num_ranks, editing)
    if not isinstance(config, RLConfig):
        return Plan(update=always | {"average": learned_bytes / shard_degree} | update)
    if not config.lora_rank and config.runtime.reference == "copy":
        always["reference"] = sizes.trained_params * itemsize / shard_degree + frozen_encoders
    if config.algorithm == "ppo":
        # a square matrix, its gradient and two moments; every rank has all of it
        always["value head"] = 4 * FLOAT32 * sizes.hidden_size**2
    rollout = rollout_bytes(sizes, config, num_ranks, editing)
    return Plan(always | rollout, always | update)


# --- drawing ---


def rollout_bytes(
    sizes: ModelSizes, config: RLConfig, num_ranks: int, editing: bool
) -> dict[str, float]:
    """What a rank holds while it draws, besides what is always there."""
    division = Division.of(sizes, config, num_ranks)
    need = episode_need(sizes, config.rollout.rounds, editing)
    all_episodes = episodes_of_rank(config, num_ranks)
    # 0: all of the rank's episodes are drawn together
    num_episodes = min(config.rollout.rollout_batch_size or all_episodes, all_episodes)
    image_pixels = sizes.image_side**2
    images_together = max(1, PIXELS // image_pixels)
    column_bytes = sizes.column_bytes(division.itemsize)
    # the engine reads weights that are gathered once for all of a rollout
    gathered_weights = sizes.trained_params * division.itemsize if division.is_sharded else 0
    # of each pixel that is decoded (``image_codec.HELD``)
    decoder_bytes = 4 * sizes.decoder_channels * division.itemsize
    return {
        "gathered weights": gathered_weights,
        "key-value cache": need.cache(num_episodes) * column_bytes,
        "cached prefixes": need.kept(num_episodes, images_together) * column_bytes,
        "pictures": min(num_episodes * image_pixels, PIXELS) * decoder_bytes,
    }


def episodes_of_rank(config: RLConfig, num_ranks: int) -> int:
    """Episodes that a rank draws in a step."""
    return -(-config.rollout.prompts_per_step // num_ranks) * config.rollout.group_size


def episode_need(sizes: ModelSizes, rounds: int, editing: bool) -> Need:
    """What an episode of so many images needs of the cache."""
    image_tokens = max(sizes.num_codes, sizes.num_patches)
    prompt_tokens = sizes.prompt_tokens
    if editing:  # the source comes with the prompt
        prompt_tokens += image_tokens + SOURCE
    reread = sizes.prompt_tokens if sizes.judge_rereads else 0
    return Need.of(prompt_tokens, image_tokens, rounds, REASON, reread=reread)


# --- an update ---


@dataclass(frozen=True)
class Pass:
    """One micro-batch's pass through the model, forward and backward."""

    num_tokens: int
    is_written: bool
    """Its targets are words, not codes: the head is then the vocabulary's."""


def longest_passes(sizes: ModelSizes, config: RLConfig | SFTConfig, editing: bool) -> list[Pass]:
    """The longest micro-batch of drawn and the longest of written targets, of those that a job
    has."""
    micro_batch_size = config.runtime.micro_batch_size
    if isinstance(config, RLConfig):
        need = episode_need(sizes, config.rollout.rounds, editing)
        # guidance scores a drawn turn's unconditional branch too
        drawn_pass = Pass(2 * micro_batch_size * need.drawn, is_written=False)
        return [drawn_pass, Pass(micro_batch_size * need.longest, is_written=True)]
    draw_weight, judge_weight, redraw_weight = config.mix
    passes = []
    if draw_weight or redraw_weight:
        rounds = config.redraw_context + 1 if redraw_weight else 1
        drawn_tokens = episode_need(sizes, rounds, editing).drawn
        passes.append(Pass(micro_batch_size * drawn_tokens, is_written=False))
    if judge_weight:
        judged_tokens = episode_need(sizes, config.judge_context, editing).longest
        passes.append(Pass(micro_batch_size * judged_tokens, is_written=True))
    return passes


def kept_per_token(
    sizes: ModelSizes, checkpointing: Checkpointing, itemsize: int, is_lora: bool
) -> float:
    """Bytes that a layer keeps of a token for the gradient, ``itemsize`` a number.

    "full" keeps the layer's input; "selective" also the results of its multiplications and of
    attention; "none" also what the norms, the rotation and the activation need (norms compute in
    float32).
    """
    hidden_size, kv_size = sizes.hidden_size, sizes.kv_size
    gate_and_up = 2 * sizes.intermediate_size
    layer_input = hidden_size
    if checkpointing == "full":
        return layer_input * itemsize
    queries_and_outputs = 3 * hidden_size  # q, attention's result, o
    keys_and_values = 2 * kv_size
    down = hidden_size
    numbers = layer_input + queries_and_outputs + keys_and_values + gate_and_up + down
    if is_lora and checkpointing == "selective":
        # the adapters are multiplications too: their results are as wide as the layers' own
        numbers += queries_and_outputs + keys_and_values + gate_and_up
    if checkpointing == "selective":
        return numbers * itemsize
    normed_inputs = 2 * hidden_size  # of attention and of the MLP
    rotated = hidden_size + kv_size  # q and k
    activated = 2 * sizes.intermediate_size  # silu(gate), and its product with up
    numbers += normed_inputs + rotated + activated
    return numbers * itemsize + normed_inputs * FLOAT32


def highest_moment(
    sizes: ModelSizes, config: RLConfig | SFTConfig, num_ranks: int, editing: bool
) -> dict[str, float]:
    """What an update holds besides what is always there, at its highest moment: amid the layers,
    where the layers outside of them are gathered or get their gradients, in the optimizer's step,
    or where PPO's value head learns."""
    division = Division.of(sizes, config, num_ranks)
    base = {"gradients": division.learned_params * FLOAT32 / division.shard_degree}
    # AdamW by lists of tensors makes the square roots of all second moments at once
    optimizer_step = base | {"optimizer's step": base["gradients"]}
    moments = [optimizer_step]
    if isinstance(config, RLConfig) and config.algorithm == "ppo":
        repair_groups = -(-config.rollout.repair_groups // num_ranks)
        num_episodes = episodes_of_rank(config, num_ranks)
        num_episodes += repair_groups * config.rollout.group_size  # drawn after the others
        num_turns = num_episodes * config.rollout.rounds
        # of every token, and of a drawn one's unconditional branch, until the step is over
        state_tokens = num_turns * (2 * sizes.num_codes + REASON)
        state_bytes = state_tokens * sizes.hidden_size * division.itemsize
        states = {"states for the value head": state_bytes}
        minibatch_tokens = num_turns * (sizes.num_codes + REASON) / config.optim.minibatches
        # the states themselves, and four results of the head in float32
        bytes_per_token = sizes.hidden_size * (division.itemsize + 4 * FLOAT32)
        value_head = {"activations": minibatch_tokens * bytes_per_token}
        moments = [optimizer_step | states, states | value_head]
        base |= states
    for longest_pass in longest_passes(sizes, config, editing):
        moments += _pass_moments(sizes, config, division, base, longest_pass)
    return max(moments, key=lambda moment: sum(moment.values()))


def _pass_moments(
    sizes: ModelSizes,
    config: RLConfig | SFTConfig,
    division: Division,
    base: dict[str, float],
    micro_batch: Pass,
) -> list[dict[str, float]]:
    """Moments of one micro-batch's passes, ``base`` included."""
    itemsize, shard_degree = division.itemsize, division.shard_degree
    is_lora = bool(config.lora_rank)
    num_tokens, is_written = micro_batch.num_tokens, micro_batch.is_written
    params_in_layers = sizes.trained_params - sizes.root_params
    layer_params = params_in_layers / sizes.num_layers
    word_table_params = sizes.vocab_size * sizes.hidden_size

    amid_layers = base | {
        "activations": _activations(sizes, config, division, num_tokens),
        # of so many at a time (``sampling.AT_ONCE``): as computed, and three results in float32
        "logits": 2**24 * (FLOAT32 * 3 + itemsize),
    }
    if is_written and not is_lora:  # the last layer's gradient
        amid_layers["logits"] += word_table_params * itemsize
    if not division.is_sharded:
        return [amid_layers]
    moments = [amid_layers]
    # this layer's and the next one's
    amid_layers["gathered weights"] = (sizes.root_params + 2 * layer_params) * itemsize
    if not is_lora:
        # of one layer in part, of the one before in float32 on their way to other ranks
        amid_layers["gathered gradients"] = layer_params * (itemsize / 2 + FLOAT32)
        outside_params = sizes.root_params - word_table_params
        if is_written:  # the embedding of words and the last layer
            outside_params = 2 * word_table_params
        # as computed, in float32 on their way, and this rank's part of their sum
        bytes_per_param = itemsize + FLOAT32 + FLOAT32 / shard_degree
        outside_gradients = outside_params * bytes_per_param
        outside_gradients += _replicas_sum(sizes, division)
        moments.append(base | {"gathered gradients": outside_gradients})
    ends = {
        "gathered weights": 2 * (sizes.root_params + layer_params) * itemsize,
        "activations": 2 * num_tokens * sizes.hidden_size * itemsize,
    }
    return [*moments, base | ends]


def _activations(
    sizes: ModelSizes, config: RLConfig | SFTConfig, division: Division, num_tokens: int
) -> float:
    """Bytes that are kept for the gradient amid the backward pass: of all layers, and of the one
    that is computed again."""
    itemsize, is_lora = division.itemsize, bool(config.lora_rank)
    checkpointing = config.runtime.activation_checkpointing
    kept = kept_per_token(sizes, checkpointing, itemsize, is_lora)
    kept_in_all_layers = num_tokens * kept * sizes.num_layers
    without_checkpointing = kept_per_token(sizes, "none", itemsize, is_lora)
    computed_again = {
        "none": 0.0,
        "selective": without_checkpointing - kept_per_token(sizes, "selective", itemsize, False),
        "full": without_checkpointing,
    }[checkpointing]
    # with the gradients of gate and up
    in_one_layer = num_tokens * (computed_again + 2 * sizes.intermediate_size * itemsize)
    # the replicas' sum is made when the layers' activations are gone: the higher of both counts
    return max(kept_in_all_layers, _replicas_sum(sizes, division)) + in_one_layer


def _replicas_sum(sizes: ModelSizes, division: Division) -> float:
    """Bytes of the layers' gradients that replicas add up when all layers have theirs."""
    if not division.has_replicas:
        return 0.0
    params_in_layers = sizes.trained_params - sizes.root_params
    learned_in_layers = division.learned_params * params_in_layers / sizes.trained_params
    return learned_in_layers * FLOAT32 / division.shard_degree
