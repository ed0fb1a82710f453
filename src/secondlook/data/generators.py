"""Where pictures of prompts come from: a model of this package, a pipeline of diffusers, a folder
(``data.folder_generator``), or what else is registered by ``@register_generator``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from PIL import Image
from pydantic import Field, model_validator

from secondlook import plugin_settings, registry
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, turn_seed
from secondlook.errors import InputError
from secondlook.registry import register_generator
from secondlook.types import Prompt, Request

OWN_KEYS = ("kind", "model", "images", "batch", "licence")
"""Of a ``[[generators]]`` table; all others are settings of the kind."""


@dataclass(frozen=True)
class GeneratorConfig:
    """One ``[[generators]]``. Its keys beyond the fields below are the settings of what is
    registered under ``kind``."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    kind: str = "model"
    """The registered name: ``model`` (of this package), ``diffusers`` (a text-to-image pipeline),
    ``folder`` (pictures that are there), ``render`` (right pictures and near misses of the
    miniature's world, for its own prompts), or a plugin's."""
    model: str = ""
    """Model: a shipped model, a folder or a hub id. Diffusers: a folder or a hub id. Folder: the
    path of a folder with metadata.jsonl, whose lines are {"file_name": …, "prompt": …}, and for an
    edit {"file_name": …, "prompt": the instruction, "source": …}; files lie beside it. Render: the
    model whose image tokenizer the pictures pass through."""
    images: int = 4
    """Pictures a prompt; render: one of them is right."""
    batch: int = 96
    """Pictures drawn together, fewer where a GPU's memory does not hold so many."""
    licence: str = ""
    """Of the pictures, for the manifest."""
    settings: Any = field(default_factory=dict)
    """In Python a dictionary; once it is checked, a dataclass of the kind's settings."""

    @model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, values: Any) -> Any:
        return plugin_settings.gather_settings(values, OWN_KEYS)

    def __post_init__(self) -> None:
        for field_name in ("images", "batch"):
            if getattr(self, field_name) < 1:
                raise InputError(
                    f"config: generators: {field_name} is {getattr(self, field_name)}; it must be "
                    "at least 1"
                )
        try:
            registered = registry.generators.get(self.kind)
        except InputError as error:
            raise InputError(f"config: {error}") from error
        checked_settings = plugin_settings.check_settings(
            "generators", self.kind, registered, self.settings, _provided(registered), OWN_KEYS
        )
        if not self.model and plugin_settings.takes(registered, "model"):
            what = "the folder's path there" if self.kind == "folder" else "one"
            raise InputError(
                f"config: generators: model is empty; a generator of kind {self.kind!r} needs "
                f"{what}"
            )
        object.__setattr__(self, "settings", checked_settings)  # the dataclass is frozen


FROM_THE_JOB = frozenset({"model", "images", "batch", "load", "seed", "device", "prompt_options"})
"""What a generator's class is given, where its constructor names it. ``load`` makes the engine of a
model's name; ``prompt_options`` are the config's."""
FROM_THE_PROMPT = frozenset({"prompt", "seed", "source"})
"""Parameters of a generator that is a function; all others are its settings."""


def _provided(registered: Callable[..., Any]) -> frozenset[str]:
    """Parameters of a generator that are not its settings."""
    return FROM_THE_JOB if isinstance(registered, type) else FROM_THE_PROMPT


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt, and what made it."""

    prompt: Prompt
    image: Image.Image
    source: str
    """The model, folder or generator that it is from (not the picture that is edited)."""
    seed: int | None = None
    """None: it was not drawn with one."""


@dataclass(frozen=True)
class Shard:
    """Prompts whose pictures lie in one file. Seeds depend on ``start`` alone, the number of its
    first prompt."""

    number: int
    start: int
    prompts: tuple[Prompt, ...]
    size: int
    """Prompts of the world that it was drawn from, those left out included."""


class Generator(Protocol):
    """What a class registered by ``@register_generator`` is. A class attribute
    ``only_prompts`` names the one prompt source whose prompts it can draw.

    A function ``(prompt, seed)`` that returns one picture may be registered instead, with a
    parameter ``source`` where it can edit.
    """

    def __call__(self, shard: Shard) -> list[Picture]:
        """Pictures of a shard's prompts."""
        ...


Load = Callable[[str], Engine]


def seeds_of(seed: int, shard: Shard, images: int) -> list[int]:
    """One seed for each of ``images`` pictures of each of a shard's prompts: all of the first
    prompt, then all of the second, and so on."""
    first_number = seed * 10**9 + shard.start * images  # pictures are numbered across shards
    num_pictures = len(shard.prompts) * images
    return [turn_seed(first_number + k, 0) for k in range(num_pictures)]


@register_generator("model")
class Model:
    """Drawn by a model of this package, without a second look."""

    def __init__(
        self,
        model: str,
        load: Load,
        seed: int,
        images: int,
        guidance: float | None = None,
    ):
        """``guidance``: default: the model's own."""
        self.model, self.seed, self.images, self.guidance = model, seed, images, guidance
        self.engine = load(model)

    def __call__(self, shard: Shard) -> list[Picture]:
        sampling_config = SamplingConfig.of(self.engine.janus.net.generation_config)
        if self.guidance is not None:
            sampling_config = SamplingConfig(guidance=self.guidance, edit_guidance=self.guidance)
        prompt_of_picture = _repeated(shard.prompts, self.images)
        seeds = seeds_of(self.seed, shard, self.images)
        source_codes = self._source_codes(shard.prompts)
        drawn_codes: list[tuple[int, ...]] = [()] * len(seeds)  # 576 codes a picture at full size
        # Prompts and edits have guidance of their own, so they are drawn one after the other.
        for editing in (False, True):
            places, requests = [], []
            for place, prompt in enumerate(prompt_of_picture):
                if (prompt.source is not None) == editing:
                    places.append(place)
                    requests.append(self._request(prompt, source_codes, seeds[place]))
            if not requests:
                continue
            turns = self.engine.draw(requests, sampling_config.draw_params(editing))
            for place, turn in zip(places, turns, strict=True):
                drawn_codes[place] = turn.tokens
        pictures = []
        for place, image in enumerate(self.engine.pictures(drawn_codes)):
            pictures.append(Picture(prompt_of_picture[place], image, self.model, seeds[place]))
        return pictures

    def _source_codes(self, prompts: Sequence[Prompt]) -> dict[str, tuple[int, ...]]:
        """The codes of every edit's source, by the edit's ``Prompt.key``."""
        source_images = {prompt.key: prompt.source for prompt in prompts if prompt.source}
        if not source_images:
            return {}
        codes = self.engine.codes(list(source_images.values()))
        return dict(zip(source_images, codes, strict=True))

    def _request(
        self, prompt: Prompt, source_codes: dict[str, tuple[int, ...]], seed: int
    ) -> Request:
        template = self.engine.template
        if prompt.source:
            return Request("edit", template.edit(source_codes[prompt.key], prompt.text), seed)
        return Request("draw", template.draw(prompt.text), seed)


def _repeated(prompts: Sequence[Prompt], times: int) -> list[Prompt]:
    """Each prompt ``times`` times in a row, in the order of ``seeds_of``."""
    return [prompt for prompt in prompts for _ in range(times)]


@register_generator("diffusers")
class Diffusers:
    """Drawn by a text-to-image pipeline. Raises InputError where diffusers is not installed or
    cannot load it."""

    def __init__(
        self,
        model: str,
        device: str,
        seed: int,
        images: int,
        batch: int,
        guidance: float | None = None,
        steps: Annotated[int, Field(ge=1)] = 28,
    ):
        """``guidance``: default: the pipeline's own; ``steps``: of denoising."""
        try:
            import diffusers
        except ImportError as error:
            raise InputError(
                "generators: diffusers is not installed; run pip install 'secondlook[diffusers]'"
            ) from error
        import torch

        self.model, self.device, self.seed, self.images = model, device, seed, images
        self.batch = batch
        self.settings: dict[str, Any] = {"num_inference_steps": steps}
        if guidance is not None:
            self.settings["guidance_scale"] = guidance
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            self.pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
                model, torch_dtype=dtype
            ).to(device)
        except (OSError, ValueError) as error:
            first_line = str(error).splitlines()[0]  # advice about the hub follows
            raise InputError(
                f"generators: {model!r} is no pipeline that diffusers loads ({first_line})"
            ) from error
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, shard: Shard) -> list[Picture]:
        import torch

        prompt_of_picture = _repeated(shard.prompts, self.images)
        seeds = seeds_of(self.seed, shard, self.images)
        pictures: list[Picture] = []
        while len(pictures) < len(prompt_of_picture):
            in_batch = slice(len(pictures), len(pictures) + self.batch)
            batch_prompts, batch_seeds = prompt_of_picture[in_batch], seeds[in_batch]
            # self.batch may have become smaller: what is drawn does not depend on it
            try:
                batch_images = self._run_pipeline(batch_prompts, batch_seeds)
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                # What a pipeline needs is not known before it runs: halve the batch, rounded up.
                self.batch = -(-min(self.batch, len(batch_prompts)) // 2)
                torch.cuda.empty_cache()
                continue
            for prompt, image, seed in zip(batch_prompts, batch_images, batch_seeds, strict=True):
                pictures.append(Picture(prompt, image, self.model, seed))
        return pictures

    def _run_pipeline(self, prompts: list[Prompt], seeds: list[int]) -> list[Image.Image]:
        """One picture of each prompt. Raises InputError where only some of them are edits."""
        import torch

        # One generator a picture: it depends on its own seed, not on the batch.
        torch_generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        source_images = [prompt.source for prompt in prompts if prompt.source]
        if source_images and len(source_images) < len(prompts):
            raise InputError(
                "generators: diffusers is asked for pictures and for edits; give each a "
                "build of its own"
            )
        image_argument = {"image": source_images} if source_images else {}
        texts = [prompt.text for prompt in prompts]
        return self.pipeline(
            prompt=texts, generator=torch_generators, **image_argument, **self.settings
        ).images


class FunctionGenerator:
    """Calls ``function(prompt, seed, **settings)`` ``images`` times for each prompt."""

    def __init__(
        self, function: Callable[..., Any], name: str, seed: int, images: int, settings: Any
    ):
        self.function, self.name, self.seed, self.images = function, name, seed, images
        self.settings = vars(settings)
        self.can_edit = plugin_settings.takes(function, "source")

    def __call__(self, shard: Shard) -> list[Picture]:
        """Raises InputError where it gives no picture, or is asked for edits without a parameter
        ``source``."""
        seeds = iter(seeds_of(self.seed, shard, self.images))
        pictures = []
        for prompt in shard.prompts:
            source_argument = {} if prompt.source is None else {"source": prompt.source}
            if source_argument and not self.can_edit:
                raise InputError(
                    f"generators: {self.name!r} cannot edit; give its function a parameter "
                    "'source', or leave out prompts with a source"
                )
            for _ in range(self.images):  # the order of ``seeds_of``
                seed = next(seeds)
                image = self.function(prompt.text, seed, **source_argument, **self.settings)
                if not isinstance(image, Image.Image):
                    raise InputError(
                        f"generators: {self.name!r} returned {type(image).__name__}; it must "
                        "return an image of PIL"
                    )
                pictures.append(Picture(prompt, image.convert("RGB"), self.name, seed))
        return pictures


def make_generator(
    config: GeneratorConfig,
    load: Load,
    seed: int,
    device: str,
    prompt_options: Mapping[str, Any] | None = None,
) -> Generator:
    """The generator that a config asks for, loaded."""
    registered = registry.generators.get(config.kind)
    if not isinstance(registered, type):
        return FunctionGenerator(registered, config.kind, seed, config.images, config.settings)
    # ``build`` passes on only what the constructor has a parameter for
    return plugin_settings.build(
        registered,
        config.settings,
        model=config.model,
        images=config.images,
        batch=config.batch,
        load=load,
        seed=seed,
        device=device,
        prompt_options=dict(prompt_options or {}),
    )
