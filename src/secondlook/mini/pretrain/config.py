"""Settings of the jobs of pretraining."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from secondlook.errors import InputError
from secondlook.mini import datasets
from secondlook.mini.pretrain import lessons
from secondlook.mini.world import compound
from secondlook.train.job_config import CHECKED, BasicRuntimeConfig, Dtype


@dataclass(config=CHECKED)
class MuonConfig:
    """``[optim]``: Muon for the matrices of the hidden layers, AdamW for everything else."""

    muon_lr: float = Field(default=0.02, ge=0)
    """Highest learning rate of Muon."""
    adamw_lr: float = Field(default=2e-3, ge=0)
    """Highest learning rate of AdamW."""


@dataclass(config=CHECKED)
class BaseOptimConfig(MuonConfig):
    """``[optim]`` of ``train base``: linear warm-up, constant, linear down to 0."""

    adamw_lr: float = Field(default=3e-3, ge=0)
    """Highest learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rates rise."""
    cooldown: float = Field(default=0.35, gt=0, le=1)
    """Share of the steps, at the end, over which the learning rates fall linearly to 0."""


@dataclass(config=CHECKED)
class BaseRuntimeConfig(BasicRuntimeConfig):
    """``[runtime]`` of ``train base``."""

    dtype: Dtype = "float32"
    """What is computed in, Muon's products too; with bfloat16, trained weights, the optimizer's
    state and the last layer stay in float32. On a CPU that multiplies it itself (AVX512_BF16, AMX)
    a step takes about two thirds of the time."""


NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "counterfactual": (
        "prompts that name the colour of one object",
        ("colored", "position_colored", "color_attr", "three_colored", compound.TAG),
    ),
    "bind": (
        "pictures of two classes",
        ("two", "position", "position_colored", "color_attr", "three_colored", compound.TAG),
    ),
    "relate": ("prompts with relations", ("position", "position_colored", compound.TAG)),
    "count": ("prompts that count", ("counting", "counting_colored", compound.TAG)),
}
"""Lesson -> what it needs, and the kinds of prompts that have it."""


@dataclass(config=CHECKED)
class BaseConfig:
    """``train base``. When a run is resumed, ``steps`` and all of ``[runtime]`` may be changed."""

    start: str = ""
    """A checkpoint to go on from, with its text tokenizer; then ``tokenizer`` … ``inner`` are its
    own."""
    tokenizer: str = "out/tokenizer/final"
    """Folder of a trained image tokenizer."""
    vision: str = "out/vision/final"
    """Folder of a trained vision encoder."""
    vocabulary: int = Field(default=640, ge=1)
    """Tokens of the text tokenizer, which is trained on the world's sentences."""
    width: int = Field(default=192, ge=1)
    layers: int = Field(default=6, ge=1)
    heads: int = Field(default=6, ge=1)
    inner: int = Field(default=512, ge=1)
    """Width of the layers' feed-forward parts."""
    steps: int = Field(default=2300, ge=1)
    draws: int = Field(default=24, ge=0)
    """Text-to-image sequences a step."""
    questions: int = Field(default=40, ge=0)
    """Sequences about a picture a step."""
    chains: int = Field(default=8, ge=0)
    """Redraws every ``chain_every`` steps."""
    chain_every: int = Field(default=4, ge=1)
    lessons: dict[str, int] = field(default_factory=dict)
    """Lessons a step of each kind of ``mini.pretrain.lessons`` (repair, fault, counterfactual,
    edit, redraw_edit, judge_edit, bind, relate, count); the last four are two sequences each."""
    bind_clauses: int = Field(default=5, ge=1, le=compound.MAX_CLASSES)
    """Most clauses of a prompt of the lesson ``bind``: who has which colour is learned of one
    clause first, then of two, and so on."""
    changed_weight: float = Field(default=3.0, ge=0)
    """Weight, in a lesson's loss, of the codes in which the picture differs from the one before;
    the others weigh 1. Without it a redraw learns to copy first."""
    redraw_sees: Literal["chain", "last", "edit"] | None = None
    """What stands before a redraw and a verdict (``Janus.redraw_sees``); recorded with the
    checkpoint. Default: as ``start`` has it. ``lessons`` show the last picture alone."""
    judge_rereads: bool | None = None
    """Whether the prompt stands once more behind each image that is judged
    (``Janus.judge_rereads``); recorded with the checkpoint. Default: as ``start`` has it."""
    kinds: dict[str, float] = field(default_factory=lambda: dict(datasets.KINDS))
    """Shares of the kinds of prompts that are drawn and asked about."""
    question_weights: dict[str, float] = field(
        default_factory=lambda: dict(datasets.QUESTION_WEIGHTS)
    )
    """Shares of the kinds of questions (there, parts, describe, verdict); comparing stays at chance
    as one task of many (docs/LOG.md), so that one stage asks nothing but "is there …?"."""
    alone: float = Field(default=0.0, ge=0, le=1)
    """Share of the pictures asked about that show one object; comparing is learned on these
    first."""
    objects: int = Field(default=datasets.N_OBJECTS, ge=4, le=datasets.N_OBJECTS)
    """How many classes of objects (the first ones) are asked about; relations are learned on few
    first. ``lessons`` are of all."""
    aimed: float = Field(default=0.0, ge=0, le=1)
    """Share of the near misses asked about that attack what the prompt asks for: a relation, a
    count, who has which colour."""
    reordered: float = Field(default=0.0, ge=0, le=1)
    """Share of the prompts of verdicts whose clauses stand in another order than in the picture
    (those of one clause stay as they are); without them a judge compares the first clause with the
    first object and binds nothing."""
    judge_context: int = Field(default=1, ge=1)
    """Most pictures in a verdict's context, the judged one included."""
    prompt_dropout: float = Field(default=0.1, ge=0, le=1)
    """How often a drawing goes without its prompt, for classifier-free guidance."""
    ema_decay: float = Field(default=0.995, ge=0, lt=1)
    """Decay of the running average of the weights, which is what is saved."""
    seed: int = Field(default=0, ge=0)
    guidance: float = 1.0
    """Written to the checkpoint's generation config: the guidance it is sampled with unless told
    otherwise."""
    snapshot_every: int = Field(default=250, ge=1)
    """Steps between averaged checkpoints (step-N), for curves of what was learned when."""
    optim: BaseOptimConfig = field(default_factory=BaseOptimConfig)
    runtime: BaseRuntimeConfig = field(default_factory=BaseRuntimeConfig)

    def __post_init__(self) -> None:
        datasets.check_shares("question_weights", self.question_weights, datasets.QUESTION_WEIGHTS)
        datasets.check_shares("kinds", self.kinds, datasets.KINDS)
        has_compound = self.kinds.get(compound.TAG, 0) > 0
        if has_compound and self.objects < datasets.N_OBJECTS:
            raise InputError(
                f"config: objects is {self.objects}, but compound prompts have all "
                f"{datasets.N_OBJECTS} classes; give kinds without compound"
            )
        for lesson, (needed, kinds) in NEEDS.items():
            if self.lessons.get(lesson) and not any(self.kinds.get(kind) for kind in kinds):
                raise InputError(
                    f"config: lessons has {lesson}, which needs {needed}; give kinds a share of "
                    f"{', '.join(kinds)}"
                )
        if self.reordered and not (self.questions and self.question_weights.get("verdict")):
            raise InputError(
                f"config: reordered is {self.reordered}, but no verdicts are asked for; give "
                "questions and question_weights.verdict, or leave it out"
            )
        for kind, count in self.lessons.items():
            if kind not in lessons.KINDS or count < 0:
                raise InputError(
                    f"config: lessons has {kind} = {count}; known are {', '.join(lessons.KINDS)}, "
                    "each a number of at least 0"
                )
