"""What a recipe needs of a GPU's memory, and what to change where it does not fit.

An account of the tensors that a rank holds at the two peaks: while episodes are drawn, and while
the policy is updated. Drawing is counted where every verdict is No and the episodes are in step,
for a run may come to that. An update is counted at the highest of its moments; what is kept for the
gradient, per token and layer from the layers' own operations. ``benchmarks/simulate.py`` runs the
same at full size without weights, ``benchmarks/rl_step.py`` measures it (docs/LOG.md says how near
they come). Fragments and the CUDA context (a few GB) come on top: ``SPARE``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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

from secondlook.engine.capacity import Need
from secondlook.engine.image_codec import PIXELS
from secondlook.errors import InputError
from secondlook.models.janus import checkpoint
from secondlook.models.shipped import SHIPPED, locate
from secondlook.train.rl.config import RLConfig
from secondlook.train.sft import SFTConfig

GIB = 2**30
SPARE = 4 * GIB
PROMPT, REASON = 64, 48
"""Tokens of a prompt with its template, and of a reason."""
SOURCE = 6
"""Tokens around the source of an edit."""
SIZES = {"1b": (24, 2048, 5632, 16), "7b": (30, 4096, 11008, 32)}


DEFAULT: dict[str, Any] = {
    "prompts_per_step": 128,
    "group": 7,
    "at_once": 12,
    "micro": 2,
    "dtype": "bfloat16",
    "checkpointing": "full",
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


def account(s: Sizes, config: RLConfig | SFTConfig, ranks: int, editing: bool = False) -> Plan:
    """What a rank of ``ranks`` holds when it runs ``config`` on a model of sizes ``s``.
    ``editing``: prompts have sources."""
    sharded = ranks > 1 or config.dtype == "bfloat16"
    size = 2 if config.dtype == "bfloat16" else 4
    parts = (config.shard or ranks) if sharded else 1
    learned = config.lora * s.adapter if config.lora else s.trained
    base = s.trained * (size if config.lora else 4) / parts + (
        learned * 4 / parts if config.lora else 0
    )
    whole = s.trained * size if sharded else 0
    frozen = s.frozen * (2 if config.dtype == "bfloat16" else 4)
    always = {"weights": base, "optimizer": learned * 8 / parts, "frozen encoders": frozen}
    if not isinstance(config, RLConfig):
        return Plan(
            update=always | {"average": learned * 4 / parts} | highest(s, config, ranks, editing)
        )
    if not config.lora and config.reference == "copy":
        always["reference"] = s.trained * size / parts + frozen
    if config.algorithm == "ppo":
        always["value head"] = 4 * 4 * s.width**2
    need, every = (
        sequences(s, config.rounds, editing),
        -(-config.prompts_per_step // ranks) * config.group,
    )
    episodes = min(config.at_once or every, every)
    drawing = {
        "gathered weights": whole,
        "key-value cache": need.cache(episodes) * s.column(size),
        "kept sequences": need.kept(episodes, max(1, PIXELS // s.side**2)) * s.column(size),
        "pictures": min(episodes * s.side**2, PIXELS) * 4 * s.channels * size,
    }
    return Plan(always | drawing, always | highest(s, config, ranks, editing))


def sequences(s: Sizes, rounds: int, editing: bool) -> Need:
    """Of an episode of so many images."""
    image = max(s.codes, s.patches)
    return Need.of(s.prompt + editing * (image + SOURCE), image, rounds, REASON)


def micro_batches(s: Sizes, config: RLConfig | SFTConfig, editing: bool) -> list[tuple[int, bool]]:
    """Tokens of the longest micro-batches, and whether they are written ones: guidance scores a
    drawn turn's twin too."""
    if isinstance(config, RLConfig):
        need = sequences(s, config.rounds, editing)
        return [(2 * config.micro * need.drawn, False), (config.micro * need.longest, True)]
    draw, judge, redraw = config.mix
    found = []
    if draw or redraw:
        found.append(
            (sequences(s, config.redraw_context + 1 if redraw else 1, editing).drawn, False)
        )
    if judge:
        found.append((sequences(s, config.judge_context, editing).longest, True))
    return [(config.micro * tokens, written) for tokens, written in found]


def highest(s: Sizes, config: RLConfig | SFTConfig, ranks: int, editing: bool) -> dict[str, float]:
    """What an update holds besides what is always there, at its highest moment: amid the layers,
    where the layers outside of them are gathered or get their gradients, in the optimizer's step,
    or where PPO's value head learns."""
    size, lora = (2 if config.dtype == "bfloat16" else 4), bool(config.lora)
    sharded = ranks > 1 or config.dtype == "bfloat16"
    parts = (config.shard or ranks) if sharded else 1
    learned, layer = (
        (config.lora * s.adapter if lora else s.trained),
        (s.trained - s.root) / s.layers,
    )
    base = {"gradients": learned * 4 / parts}
    moments = [
        base | {"optimizer's step": base["gradients"]}
    ]  # by lists of tensors: a root of all of them
    if isinstance(config, RLConfig) and config.algorithm == "ppo":
        turns = -(-config.prompts_per_step // ranks) * config.group * config.rounds
        # of every token, and of a drawn one's twin, until the step is over
        states = {"states for the value head": turns * (2 * s.codes + REASON) * s.width * size}
        tokens = turns * (s.codes + REASON) / config.minibatches
        moments = [moments[0] | states, states | {"activations": tokens * s.width * (size + 4 * 4)}]
        base |= states
    # replicas add up their gradients when all layers have theirs
    of_replicas = (
        learned * (s.trained - s.root) / s.trained * 4 / parts if parts < ranks and sharded else 0.0
    )
    whole = kept_per_token(s, "none", size, lora)
    again = {
        "none": 0.0,
        "selective": whole - kept_per_token(s, "selective", size, False),
        "full": whole,
    }[config.checkpointing]
    for tokens, written in micro_batches(s, config, editing):
        kept = tokens * kept_per_token(s, config.checkpointing, size, lora) * s.layers
        amid = base | {
            "activations": max(kept, of_replicas) + tokens * (again + 2 * s.inner * size)
        }
        last = 0 if lora else s.vocabulary * s.width if written else 0
        amid["logits"] = 2**24 * (4 * 3 + size) + last * size
        if sharded:
            amid["gathered weights"] = (s.root + 2 * layer) * size  # the next layer's, too
            if (
                not lora
            ):  # of one layer in part, of the one before in float32 on their way to other ranks
                amid["gathered gradients"] = layer * (size / 2 + 4)
                outside = 2 * s.vocabulary * s.width if written else s.root - s.vocabulary * s.width
                moments.append(
                    base | {"gathered gradients": outside * (size + 4 + 4 / parts) + of_replicas}
                )
            moments.append(
                base
                | {
                    "gathered weights": 2 * (s.root + layer) * size,
                    "activations": 2 * tokens * s.width * size,
                }
            )
        moments.append(amid)
    return max(moments, key=lambda moment: sum(moment.values()))


def advice(
    s: Sizes, config: RLConfig | SFTConfig, ranks: int, memory: float, editing: bool = False
) -> tuple[list[str], bool]:
    """Settings to change, the least costly first, until a rank fits into ``memory`` bytes (nothing
    where it does), and whether it then does."""
    said: dict[str, str] = {}
    while True:
        plan = account(s, config, ranks, editing)
        high = {name: sum(part.values()) + SPARE > memory for name, part in vars(plan).items()}
        if not any(high.values()):
            return list(said.values()), True
        change = _next(s, config, ranks, memory, editing, high)
        if change is None:
            return list(said.values()), False
        name, value = change
        config = replace(config, **{name: value})
        said[name] = f"{name} = {value!r}".replace("'", '"')


def _next(
    s: Sizes, config: Any, ranks: int, memory: float, editing: bool, high: dict[str, bool]
) -> tuple[str, Any] | None:
    """The least costly change for the peaks that are too high; None: there is none left."""
    rl = isinstance(config, RLConfig)
    milder = {"none": "selective", "selective": "full"}
    if high["rollout"] and config.at_once != 1:
        return "at_once", at_once(s, config, ranks, memory, editing) or 1
    if high["update"] and config.checkpointing != "full":
        return "checkpointing", milder[config.checkpointing]
    if high["update"] and config.micro > 1:
        return "micro", config.micro // 2
    if config.shard and config.shard < ranks:
        return "shard", 0
    if rl and config.reference == "copy" and not config.lora:
        return "reference", "offload"
    if not config.lora and not getattr(config, "muon", 0.0):
        return "lora", 64
    return None


def at_once(s: Sizes, config: RLConfig, ranks: int, memory: float, editing: bool = False) -> int:
    """The most episodes that a rank draws together in ``memory`` bytes; 0 where there is no room
    for one."""
    every = -(-config.prompts_per_step // ranks) * config.group

    def fits(episodes: int) -> bool:
        rollout = account(s, replace(config, at_once=episodes), ranks, editing).rollout
        return sum(rollout.values()) + SPARE <= memory

    return next((n for n in range(every, 0, -1) if fits(n)), 0)


def ranks_needed(
    s: Sizes, config: RLConfig | SFTConfig, memory: float, editing: bool = False, most: int = 1024
) -> int | None:
    """The fewest ranks (1, 2, 4 …) on which ``config`` fits as it is; None: not on ``most``."""
    config, ranks = replace(config, shard=0), 1
    while ranks <= most:
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
