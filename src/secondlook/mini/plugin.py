"""What the miniature registers, as any plugin would: prompts, their reward, sanity pairs and the
generator that renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from secondlook.data.generators import Load, Picture, Shard
from secondlook.data.sanity_pairs import SanityPairs
from secondlook.mini import datasets
from secondlook.mini.verifier import Verifier
from secondlook.mini.world.compound import parse
from secondlook.mini.world.language import scene_held_out
from secondlook.mini.world.reader import to_canvas
from secondlook.mini.world.render import render
from secondlook.mini.world.repair import try_diagnose
from secondlook.registry import (
    register_generator,
    register_prompts,
    register_reward,
    register_sanity_pairs,
)
from secondlook.types import Prompt

register_reward("mini")(Verifier)


@dataclass(frozen=True)
class MiniPromptOptions:
    """``prompt_options`` of ``prompts = "mini"``."""

    kinds: dict[str, float] = field(default_factory=lambda: dict(datasets.KINDS))
    """Shares of the kinds of prompts, edits among them (recolour, replace, add, remove, move)."""
    reordered: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the prompts for pictures that name the objects in another order than the picture
    shows them; with none, a judge need not look who has which colour (``eval mini-binding``)."""

    def __post_init__(self) -> None:
        datasets.check_shares("prompt_options.kinds", self.kinds, datasets.ALL_KINDS)

    def sample(
        self, rng: np.random.Generator, n: int
    ) -> list[datasets.Picture | datasets.EditPicture]:
        """``n`` prompts with pictures that satisfy them."""
        return datasets.prompts(rng, n, self.kinds, self.reordered)


@register_prompts("mini")
class MiniPrompts:
    """Prompts of the miniature's world, held-out compositions excluded."""

    Config = MiniPromptOptions

    def __init__(self, options: MiniPromptOptions):
        self.options = options

    def draw(self, rng: np.random.Generator, n: int) -> list[Prompt]:
        """``n`` prompts of the kinds in their shares."""
        return [sample.prompt for sample in self.options.sample(rng, n)]


@register_sanity_pairs("mini")
def mini_sanity_pairs(seed: int, prompt_options: Mapping[str, Any], n: int = 16) -> SanityPairs:
    """``n`` pictures that satisfy their prompts, and a near miss of each."""
    samples = MiniPromptOptions(**prompt_options).sample(np.random.default_rng(seed), n)
    rng = np.random.default_rng(seed)
    good_pairs, bad_pairs = [], []
    for sample in samples:
        if isinstance(sample, datasets.EditPicture):
            [wrong_image] = datasets.wrong_edits(rng, sample, 1)
        else:
            [(wrong_image, _)] = datasets.wrong(rng, sample, 1)
        good_pairs.append((sample.prompt, sample.image))
        bad_pairs.append((sample.prompt, wrong_image))
    return good_pairs, bad_pairs


@register_generator("render")
class Rendered:
    """Right pictures and near misses of the world's prompts.

    They pass through the image tokenizer of ``model``, so that a verdict cannot be learned from
    their origin alone (a clean render is wrong, a decoded picture right).
    """

    only_prompts = "mini"

    def __init__(
        self,
        model: str,
        load: Load,
        seed: int,
        images: int,
        prompt_options: Mapping[str, Any],
        aimed: float = 0.5,
    ):
        """One of ``images`` is right. ``aimed``: share of the near misses that attack what
        the prompt asks for: a relation, a count, who has which colour."""
        self.seed, self.images, self.aimed = seed, images, aimed
        self.options = MiniPromptOptions(**prompt_options)
        self.engine = load(model)

    def __call__(self, shard: Shard) -> list[Picture]:
        # the same numbers as those from which the shard's prompts were drawn
        rng = np.random.default_rng([self.seed, shard.start])
        asked_prompts = {prompt.key: prompt for prompt in shard.prompts}
        rendered: list[tuple[Prompt, Image.Image, str]] = []
        for sample in self.options.sample(rng, shard.size):
            # also of a prompt that was left out, as each takes its numbers from ``rng``
            near_misses = self._near_misses(rng, sample)
            prompt = asked_prompts.get(sample.prompt.key)
            if prompt is None:
                continue
            rendered.append((prompt, sample.image, "render"))
            rendered += [(prompt, image, "near miss") for image in near_misses]
        codes = self.engine.codes([image for _, image, _ in rendered])
        decoded = self.engine.pictures(codes)
        pictures = []
        for (prompt, _, origin), decoded_image in zip(rendered, decoded, strict=True):
            pictures.append(Picture(prompt, decoded_image, origin))
        return pictures

    def repairs(
        self, wrong_pictures: Sequence[tuple[str, Image.Image]]
    ) -> list[Image.Image | None]:
        """Of each (prompt, wrong picture) the smallest repair that the world knows: the picture is
        read, its scene mended and rendered, and passed through the image tokenizer. None where no
        arrangement satisfies the prompt, or the repair would show a held-out composition."""
        repaired_images: dict[int, Image.Image] = {}
        for i, (prompt, image) in enumerate(wrong_pictures):
            diagnosis = try_diagnose(parse(prompt), to_canvas(image))
            if diagnosis and not scene_held_out(diagnosis.repaired):
                repaired_images[i] = Image.fromarray(render(diagnosis.repaired))
        # through the image tokenizer, as all pictures of this generator
        codes = self.engine.codes(list(repaired_images.values())) if repaired_images else []
        decoded = self.engine.pictures(codes) if codes else []
        repaired = dict(zip(repaired_images, decoded, strict=True))
        return [repaired.get(i) for i in range(len(wrong_pictures))]

    def _near_misses(
        self, rng: np.random.Generator, sample: datasets.Picture | datasets.EditPicture
    ) -> list[Image.Image]:
        n = self.images - 1
        if isinstance(sample, datasets.EditPicture):
            return datasets.wrong_edits(rng, sample, n)
        return [image for image, _ in datasets.wrong(rng, sample, n, self.aimed)]
