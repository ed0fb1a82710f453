"""What a recipe needs of a GPU's memory, and what to change where it does not fit.

An account of the tensors that a rank holds at the two peaks: while episodes are drawn, and while
the policy is updated. Drawing is counted where every verdict is No and the episodes are in step,
for a run may come to that. An update is counted at the highest of its moments; what is kept for the
gradient, per token and layer from the layers' own operations. ``benchmarks/simulate.py`` runs the
same at full size without weights, ``benchmarks/rl_step.py`` measures it (docs/LOG.md says how near
they come). Fragments and the CUDA context (a few GB) come on top: ``SPARE``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)
from transformers.initialization import no_init_weights

from secondlook.config import changed
from secondlook.engine.capacity import Need
from secondlook.engine.image_codec import PIXELS
from secondlook.errors import InputError
from secondlook.models.janus import checkpoint
from secondlook.models.shipped import SHIPPED, locate
from secondlook.train.rl.config import RLConfig
from secondlook.train.sft_config import SFTConfig

GIB = 2**30
SPARE = 4 * GIB
PROMPT, REASON = 64, 48
"""Tokens of a prompt with its template, and of a reason."""
SOURCE = 6
"""Tokens around the source of an edit."""
SIZES = {"1b": (24, 2048, 5632, 16), "7b": (30, 4096, 11008, 32)}


DEFAULT: dict[str, Any] = {
    "rollout": {"prompts_per_step": 128, "group_size": 7, "rollout_batch_size": 12},
    "runtime": {
        "micro_batch_size": 2,
        "dtype": "bfloat16",
        "activation_checkpointing": "full",
    },
}
"""The recipe 7b/grpo, as far as memory goes."""


@dataclass(frozen=True)
class Sizes:
    """A model in numbers: parameters, and what its language model is made of."""

    trained: int
    root: int
    """Of the trained ones, those outside the language model's layers."""
    frozen: int
    layers: int
    width: int
    inner: int
    keys: int
    """Columns of the keys (or values) of a layer."""
    codes: int
    patches: int
    vocabulary: int
    side: int
    """Pixels of a drawn image's side."""
    channels: int
    """Of the image tokenizer's decoder at full size."""
    adapter: int = 0
    """Parameters of adapters of rank 1."""
    prompt: int = PROMPT
    """Tokens of the longest prompt with its template."""

    def column(self, size: int) -> int:
        """Bytes of the keys and values of one token, in a type of ``size`` bytes."""
        return 2 * self.layers * self.keys * size


def config_of(model: str) -> JanusConfig:
    """Of "1b", "7b", a shipped model's name, a folder or a hub id (which is fetched). Raises
    InputError for anything else."""
    if model not in SIZES:
        return checkpoint.config_of(checkpoint.fetch(locate(model)))
    layers, width, inner, heads = SIZES[model]
    return JanusConfig(
        text_config=LlamaConfig(
            vocab_size=102400,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
        ),
        vision_config=JanusVisionConfig(projection_dim=width),
        vq_config=JanusVQVAEConfig(projection_dim=width, image_token_embed_dim=width),
    )


@cache
def sizes(model: str) -> Sizes:
    """Of a model by any of ``config_of``'s names."""
    config = config_of(model)
    with torch.device("meta"), no_init_weights():
        net: Any = JanusForConditionalGeneration._from_config(config)

    def count(module) -> int:
        return sum(p.numel() for p in module.parameters())

    text, vq = config.text_config, config.vq_config
    frozen = count(net.model.vqmodel) + count(net.model.vision_model)
    trained, in_layers = count(net) - frozen, count(net.model.language_model.layers)
    linear = [
        m
        for part in (
            net.model.language_model.layers,
            net.model.generation_aligner,
            net.model.generation_head.proj_out,
        )
        for m in part.modules()
        if isinstance(m, torch.nn.Linear)
    ]
    return Sizes(
        trained=trained,
        root=trained - in_layers,
        frozen=frozen,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=text.intermediate_size,
        keys=text.num_key_value_heads * (text.hidden_size // text.num_attention_heads),
        codes=vq.num_patches**2,
        patches=config.vision_config.num_image_tokens,
        vocabulary=text.vocab_size,
        side=config.vision_config.image_size,
        channels=vq.base_channels,
        adapter=sum(m.in_features + m.out_features for m in linear),
    )


def kept_per_token(s: Sizes, checkpointing: str, size: int, lora: bool) -> float:
    """Bytes that a layer keeps of a token for the gradient, in a type of ``size`` bytes.

    "selective" keeps the layer's input and the results of its multiplications and of attention;
    "none" also what the norms, the rotation and the activation need (norms compute in float32).
    """
    layer_input = s.width
    if checkpointing == "full":
        return layer_input * size
    multiplied = (
        3 * s.width + 2 * s.keys + 2 * s.inner + s.width
    )  # q, o, attention; k, v; gate, up; down
    kept = layer_input + multiplied
    if lora and checkpointing == "selective":
        kept += 3 * s.width + 2 * s.keys + 2 * s.inner  # the adapters' own results
    if checkpointing == "none":
        kept += (
            2 * s.width + s.width + s.keys + 2 * s.inner
        )  # normed inputs; rotated q and k; activation, product
        return kept * size + 2 * 4 * s.width
    return kept * size


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

    size: int
    """Bytes of a number that is computed with; trained weights, gradients and optimizer have 4."""
    is_sharded: bool
    parts: int
    """Ranks that share one copy of the weights."""
    has_replicas: bool
    learned: int
    """Parameters that are trained: all but the frozen encoders', or the adapters'."""

    @staticmethod
    def of(s: Sizes, config: RLConfig | SFTConfig, ranks: int) -> Division:
        is_half = config.runtime.dtype == "bfloat16"
        is_sharded = ranks > 1 or is_half
        parts = (config.runtime.dp_shard_degree or ranks) if is_sharded else 1
        learned = config.lora_rank * s.adapter if config.lora_rank else s.trained
        return Division(
            size=2 if is_half else 4,
            is_sharded=is_sharded,
            parts=parts,
            has_replicas=is_sharded and parts < ranks,
            learned=learned,
        )


def account(s: Sizes, config: RLConfig | SFTConfig, ranks: int, editing: bool = False) -> Plan:
    """What a rank of ``ranks`` holds when it runs ``config`` on a model of sizes ``s``.
    ``editing``: prompts have sources."""
    division = Division.of(s, config, ranks)
    size, parts, learned = division.size, division.parts, division.learned
    weights = s.trained * 4 / parts
    if config.lora_rank:  # the base is frozen and may be in half precision
        weights = s.trained * size / parts + learned * 4 / parts
    frozen = s.frozen * size
    always = {"weights": weights, "optimizer": learned * 8 / parts, "frozen encoders": frozen}
    update = highest_moment(s, config, ranks, editing)
    if not isinstance(config, RLConfig):
        return Plan(update=always | {"average": learned * 4 / parts} | update)
    if not config.lora_rank and config.runtime.reference == "copy":
        always["reference"] = s.trained * size / parts + frozen
    if config.algorithm == "ppo":
        always["value head"] = 4 * 4 * s.width**2
    return Plan(always | _drawing(s, config, ranks, editing), always | update)


def _drawing(s: Sizes, config: RLConfig, ranks: int, editing: bool) -> dict[str, float]:
    """What a rank holds while it draws, besides what is always there."""
    division = Division.of(s, config, ranks)
    need = sequences(s, config.rollout.rounds, editing)
    all_episodes = episodes_of_rank(config, ranks)
    episodes = min(config.rollout.rollout_batch_size or all_episodes, all_episodes)
    decoded_at_once = max(1, PIXELS // s.side**2)
    column = s.column(division.size)
    return {
        "gathered weights": s.trained * division.size if division.is_sharded else 0,
        "key-value cache": need.cache(episodes) * column,
        "kept sequences": need.kept(episodes, decoded_at_once) * column,
        "pictures": min(episodes * s.side**2, PIXELS) * 4 * s.channels * division.size,
    }


def episodes_of_rank(config: RLConfig, ranks: int) -> int:
    """Episodes that a rank draws in a step."""
    return -(-config.rollout.prompts_per_step // ranks) * config.rollout.group_size


def sequences(s: Sizes, rounds: int, editing: bool) -> Need:
    """Of an episode of so many images."""
    image = max(s.codes, s.patches)
    return Need.of(s.prompt + editing * (image + SOURCE), image, rounds, REASON)


def longest_micro_batches(
    s: Sizes, config: RLConfig | SFTConfig, editing: bool
) -> list[tuple[int, bool]]:
    """Tokens of the longest micro-batches, and whether they are written ones: guidance scores a
    drawn turn's unconditional branch too."""
    micro_batch_size = config.runtime.micro_batch_size
    if isinstance(config, RLConfig):
        need = sequences(s, config.rollout.rounds, editing)
        return [
            (2 * micro_batch_size * need.drawn, False),
            (micro_batch_size * need.longest, True),
        ]
    draw, judge, redraw = config.mix
    batches = []
    if draw or redraw:
        rounds = config.redraw_context + 1 if redraw else 1
        batches.append((micro_batch_size * sequences(s, rounds, editing).drawn, False))
    if judge:
        longest = sequences(s, config.judge_context, editing).longest
        batches.append((micro_batch_size * longest, True))
    return batches


def highest_moment(
    s: Sizes, config: RLConfig | SFTConfig, ranks: int, editing: bool
) -> dict[str, float]:
    """What an update holds besides what is always there, at its highest moment: amid the layers,
    where the layers outside of them are gathered or get their gradients, in the optimizer's step,
    or where PPO's value head learns."""
    division = Division.of(s, config, ranks)
    base = {"gradients": division.learned * 4 / division.parts}
    # by lists of tensors: a root of all of them
    optimizer_step = base | {"optimizer's step": base["gradients"]}
    moments = [optimizer_step]
    if isinstance(config, RLConfig) and config.algorithm == "ppo":
        turns = episodes_of_rank(config, ranks) * config.rollout.rounds
        # of every token, and of a drawn one's unconditional branch, until the step is over
        state_tokens = turns * (2 * s.codes + REASON)
        states = {"states for the value head": state_tokens * s.width * division.size}
        tokens = turns * (s.codes + REASON) / config.optim.minibatches
        value_head = {"activations": tokens * s.width * (division.size + 4 * 4)}
        moments = [optimizer_step | states, states | value_head]
        base |= states
    for tokens, is_written in longest_micro_batches(s, config, editing):
        moments += _pass_moments(s, config, division, base, tokens, is_written)
    return max(moments, key=lambda moment: sum(moment.values()))


def _pass_moments(
    s: Sizes,
    config: RLConfig | SFTConfig,
    division: Division,
    base: dict[str, float],
    tokens: int,
    is_written: bool,
) -> list[dict[str, float]]:
    """Moments of one micro-batch's passes, ``base`` included."""
    size, parts, is_lora = division.size, division.parts, bool(config.lora_rank)
    checkpointing = config.runtime.activation_checkpointing
    in_layers = s.trained - s.root
    layer = in_layers / s.layers
    # replicas add up their gradients when all layers have theirs
    replicas_sum = 0.0
    if division.has_replicas:
        replicas_sum = division.learned * in_layers / s.trained * 4 / parts
    all_kept = kept_per_token(s, "none", size, is_lora)
    computed_again = {
        "none": 0.0,
        "selective": all_kept - kept_per_token(s, "selective", size, False),
        "full": all_kept,
    }[checkpointing]
    kept = tokens * kept_per_token(s, checkpointing, size, is_lora) * s.layers
    in_one_layer = tokens * (computed_again + 2 * s.inner * size)
    amid_layers = base | {"activations": max(kept, replicas_sum) + in_one_layer}
    last_layer = s.vocabulary * s.width if is_written and not is_lora else 0
    amid_layers["logits"] = 2**24 * (4 * 3 + size) + last_layer * size
    moments = [amid_layers]
    if not division.is_sharded:
        return moments
    amid_layers["gathered weights"] = (s.root + 2 * layer) * size  # the next layer's, too
    if not is_lora:
        # of one layer in part, of the one before in float32 on their way to other ranks
        amid_layers["gathered gradients"] = layer * (size / 2 + 4)
        word_tables = s.vocabulary * s.width
        outside = 2 * word_tables if is_written else s.root - word_tables
        outside_gradients = outside * (size + 4 + 4 / parts) + replicas_sum
        moments.append(base | {"gathered gradients": outside_gradients})
    ends = {
        "gathered weights": 2 * (s.root + layer) * size,
        "activations": 2 * tokens * s.width * size,
    }
    return [*moments, base | ends]


def advice(
    s: Sizes, config: RLConfig | SFTConfig, ranks: int, memory: float, editing: bool = False
) -> tuple[list[str], bool]:
    """Settings to change ("section.key = value"), the least costly first, until a rank fits into
    ``memory`` bytes (nothing where it does), and whether it then does."""
    changes: dict[str, str] = {}
    while True:
        plan = account(s, config, ranks, editing)
        too_high = {name: sum(part.values()) + SPARE > memory for name, part in vars(plan).items()}
        if not any(too_high.values()):
            return list(changes.values()), True
        change = _next_change(s, config, ranks, memory, editing, too_high)
        if change is None:
            return list(changes.values()), False
        config = changed(config, change)
        for name, value in change.items():
            changes[name] = f"{name} = {json.dumps(value)}"


def _next_change(
    s: Sizes,
    config: Any,
    ranks: int,
    memory: float,
    editing: bool,
    too_high: dict[str, bool],
) -> dict[str, Any] | None:
    """The least costly change for the peaks that are too high; None: there is none left."""
    is_rl, runtime = isinstance(config, RLConfig), config.runtime
    checkpointing = runtime.activation_checkpointing
    if too_high["rollout"] and config.rollout.rollout_batch_size != 1:
        largest = largest_rollout_batch(s, config, ranks, memory, editing)
        return {"rollout.rollout_batch_size": largest or 1}
    if too_high["update"] and checkpointing != "full":
        costlier = {"none": "selective", "selective": "full"}
        return {"runtime.activation_checkpointing": costlier[checkpointing]}
    if too_high["update"] and runtime.micro_batch_size > 1:
        return {"runtime.micro_batch_size": runtime.micro_batch_size // 2}
    if runtime.dp_shard_degree and runtime.dp_shard_degree < ranks:
        return {"runtime.dp_shard_degree": 0}
    if is_rl and runtime.reference == "copy" and not config.lora_rank:
        return {"runtime.reference": "offload"}
    if not config.lora_rank and not getattr(config.optim, "muon_lr_ratio", 0.0):
        return {"lora_rank": 64}
    return None


def largest_rollout_batch(
    s: Sizes, config: RLConfig, ranks: int, memory: float, editing: bool = False
) -> int:
    """The most episodes that a rank draws together in ``memory`` bytes; 0 where there is no room
    for one."""
    for episodes in range(episodes_of_rank(config, ranks), 0, -1):
        tried = changed(config, {"rollout.rollout_batch_size": episodes})
        rollout = account(s, tried, ranks, editing).rollout
        if sum(rollout.values()) + SPARE <= memory:
            return episodes
    return 0


def ranks_needed(
    s: Sizes,
    config: RLConfig | SFTConfig,
    memory: float,
    editing: bool = False,
    max_ranks: int = 1024,
) -> int | None:
    """The fewest ranks (1, 2, 4 …) on which ``config`` fits as it is; None: not on
    ``max_ranks``."""
    config, ranks = changed(config, {"runtime.dp_shard_degree": 0}), 1
    while ranks <= max_ranks:
        if account(s, config, ranks, editing).peak + SPARE <= memory:
            return ranks
        ranks *= 2
    return None


def model_of(recipe: Path, config: RLConfig | SFTConfig) -> str:
    """The model that a recipe is for, by a name that ``sizes`` knows: its own where it is at hand,
    else the size that the model, the recipe's folder or its file is named for ("7b/grpo.toml",
    "my_grpo_7b.toml"). Raises InputError where none says it."""
    own = Path(config.model)
    if config.model in SHIPPED or (own / "config.json").is_file():
        return config.model
    # "Janus-Pro-7B" is known without being fetched
    for text in (own.name, recipe.parent.name, recipe.stem):
        for size in SIZES:
            if size in text.lower().replace("-", "_").split("_"):
                return size
    raise InputError(
        f"model: {config.model!r} of {str(recipe)!r} is not here; say with --model how large it "
        "is (1b, 7b, …)"
    )


def edits(recipe: Path) -> bool:
    """Whether a recipe is for edits, by its name ("7b/edit_grpo.toml")."""
    return "edit" in recipe.stem.split("_")
