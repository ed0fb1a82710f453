"""What ``data build`` may be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from secondlook import registry
from secondlook.data.expand import ExpandConfig
from secondlook.data.generators import GeneratorConfig
from secondlook.data.prompts import check_prompt_options
from secondlook.data.sft_dataset import GOOD_EDIT, GOOD_TO_DRAW, GOOD_TO_JUDGE
from secondlook.errors import InputError
from secondlook.rewards.config import RewardConfig


@dataclass
class BuildConfig:
    """``data build``."""

    generators: list[GeneratorConfig]
    prompts: str = ""
    """A text file with one prompt a line, a JSONL file of prompts and of instructions with sources
    (``data.prompts``), or a registered name (``mini``); empty where ``templates`` are given."""
    prompt_options: dict[str, Any] = field(default_factory=dict)
    """Settings of a registered prompt source."""
    templates: list[str] = field(default_factory=list)
    """Prompts with {names} that are filled with every combination of ``words``."""
    words: dict[str, list[str]] = field(default_factory=dict)
    n_prompts: int = 3000
    """How many (of a file: the first ones; of templates: a random choice)."""
    expand: ExpandConfig | None = None
    """Captions in place of the prompts, which are their seeds."""
    against: list[str] = field(default_factory=list)
    """Files of benchmark prompts: what overlaps with one (``data.overlap``) is left out."""
    share: float = 0.7
    """Runs of three words in common from which on two prompts overlap."""
    rewards: list[RewardConfig] = field(default_factory=list)
    """Who scores the pictures, a weighted mean when several; default: the reward registered under
    the name of ``prompts``."""
    good_to_draw: float = GOOD_TO_DRAW
    good_to_judge: float = GOOD_TO_JUDGE
    good_edit: float = GOOD_EDIT
    """Following and preserving from which on an edit is learned."""
    redraw: Literal["any", "nearest", "edit", "repair"] = "any"
    """What a redraw is taught to become (``data.redraw_targets``): ``any`` right picture of the
    prompt (the paper), the right one that shares most codes with the wrong one, an edit of the
    wrong one by ``redraw_model`` that the reward accepts, or what the first of the generators that
    can repair pictures (``render``) makes of it."""
    redraw_model: str = ""
    """Whose image tokenizer says what is near, or who edits; empty: the first model of this package
    that a generator names."""
    redraw_edits: int = 4
    """Edits that are tried of each wrong picture."""
    examples: Literal["parquet", "webdataset", "none"] = "parquet"
    """Examples of the three tasks, for other trainers too; ``train sft`` pairs the scored pictures
    itself."""
    examples_per_prompt: int = 4
    """Most examples of a prompt and task."""
    shard: int = 250
    """Prompts a shard."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"

    @property
    def repairing_generator(self) -> GeneratorConfig | None:
        """The first one whose class has a method ``repairs``."""
        for generator in self.generators:
            if hasattr(registry.generators.get(generator.kind), "repairs"):
                return generator
        return None

    def __post_init__(self) -> None:
        for field_name in ("n_prompts", "shard", "examples_per_prompt", "redraw_edits"):
            value = getattr(self, field_name)
            if value < 1:
                raise InputError(f"config: {field_name} is {value}; it must be at least 1")
        if not self.generators:
            raise InputError("config: generators is empty; give at least one [[generators]]")
        if self.redraw in ("nearest", "edit") and not self.redraw_model:
            models = [g.model for g in self.generators if g.kind in ("model", "render")]
            if not models:
                raise InputError(
                    f"config: redraw is {self.redraw!r}, but redraw_model is empty and no "
                    "generator has a model of this package; name one"
                )
            self.redraw_model = models[0]
        if self.redraw == "repair" and self.repairing_generator is None:
            raise InputError(
                "config: redraw is 'repair', but none of the generators can repair a picture; "
                "render can, else use 'nearest' or 'edit'"
            )
        if self.prompts and self.templates:
            raise InputError("config: prompts and templates are both given; use one of them")
        if not self.prompts and not self.templates:
            raise InputError(
                "config: prompts is empty; give a file, a registered name of "
                f"{', '.join(registry.prompts.names())}, or templates"
            )
        check_prompt_options(self.prompts, self.prompt_options)
        for generator in self.generators:
            registered = registry.generators.get(generator.kind)
            only_prompts = getattr(registered, "only_prompts", self.prompts)
            if only_prompts != self.prompts:
                raise InputError(
                    f"config: generators: {generator.kind} draws its own world's prompts; set "
                    f"prompts = {only_prompts!r}"
                )
