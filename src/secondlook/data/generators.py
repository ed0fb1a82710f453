"""Where pictures of prompts come from: a model of this package, a pipeline of diffusers, a folder,
or what else is registered by ``@register_generator``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os.path import relpath
from pathlib import Path
from typing import Annotated, Any, Protocol

from PIL import Image
from pydantic import Field, model_validator

from secondlook import plugin_settings, registry
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, turn_seed
from secondlook.errors import InputError
from secondlook.io import EXTENSIONS, beside, read_image, read_rows, text_field
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
        """A TOML table has the settings beside the fields."""
        if not isinstance(values, dict):
            return values
        own = {name: values[name] for name in OWN_KEYS if name in values}
        return own | {"settings": {k: v for k, v in values.items() if k not in own}}

    def __post_init__(self) -> None:
        for name in ("images", "batch"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config: generators: {name} is {getattr(self, name)}; it must be at least 1"
                )
        try:
            thing = registry.generators.get(self.kind)
        except InputError as error:
            raise InputError(f"config: {error}") from error
        checked = plugin_settings.check_settings(
            "generators", self.kind, thing, self.settings, _provided(thing), OWN_KEYS
        )
        if not self.model and plugin_settings.takes(thing, "model"):
            what = "the folder's path there" if self.kind == "folder" else "one"
            raise InputError(
                f"config: generators: model is empty; a generator of kind {self.kind!r} needs "
                f"{what}"
            )
        object.__setattr__(self, "settings", checked)


FROM_THE_JOB = frozenset({"model", "images", "batch", "load", "seed", "device", "prompt_options"})
"""What a generator's class is given, where its constructor names it. ``load`` makes the engine of a
model's name; ``prompt_options`` are the config's."""
FROM_THE_PROMPT = frozenset({"prompt", "seed", "source"})
"""Parameters of a generator that is a function; all others are its settings."""


def _provided(thing: Callable[..., Any]) -> frozenset[str]:
    return FROM_THE_JOB if isinstance(thing, type) else FROM_THE_PROMPT


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt, and what made it."""

    prompt: Prompt
    image: Image.Image
    source: str
    seed: int | None = None


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
FAULTS_TOLD = 3
"""Pictures of a folder that cannot be used and are named; further ones are counted."""


def seeds_of(seed: int, shard: Shard, images: int) -> list[int]:
    """Of ``images`` pictures of each of a shard's prompts, in this order."""
    first = seed * 10**9 + shard.start * images
    return [turn_seed(first + k, 0) for k in range(len(shard.prompts) * images)]


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
        rule = SamplingConfig.of(self.engine.janus.net.generation_config)
        if self.guidance is not None:
            rule = SamplingConfig(guidance=self.guidance, edit_guidance=self.guidance)
        asked = [prompt for prompt in shard.prompts for _ in range(self.images)]
        seeds = seeds_of(self.seed, shard, self.images)
        sources = {p.key: p.source for p in shard.prompts if p.source}
        codes = (
            dict(zip(sources, self.engine.codes(list(sources.values())), strict=True))
            if sources
            else {}
        )
        tokens: dict[int, tuple[int, ...]] = {}
        for editing in (False, True):  # two rules
            those = [i for i, p in enumerate(asked) if (p.source is not None) == editing]
            requests = [self._request(asked[i], codes, seeds[i]) for i in those]
            drawn = self.engine.draw(requests, rule.draw_params(editing)) if those else []
            tokens |= {i: turn.tokens for i, turn in zip(those, drawn, strict=True)}
        images = self.engine.pictures([tokens[i] for i in range(len(asked))])
        return [Picture(p, i, self.model, s) for p, i, s in zip(asked, images, seeds, strict=True)]

    def _request(self, p: Prompt, codes: dict[str, tuple[int, ...]], seed: int) -> Request:
        template = self.engine.template
        return (
            Request("edit", template.edit(codes[p.key], p.text), seed)
            if p.source
            else Request("draw", template.draw(p.text), seed)
        )


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
            why = str(error).splitlines()[0]
            raise InputError(
                f"generators: {model!r} is no pipeline that diffusers loads ({why})"
            ) from error
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, shard: Shard) -> list[Picture]:
        import torch

        asked = [prompt for prompt in shard.prompts for _ in range(self.images)]
        seeds = [seed % 2**63 for seed in seeds_of(self.seed, shard, self.images)]
        found: list[Picture] = []
        while len(found) < len(asked):
            here = slice(len(found), len(found) + self.batch)
            part, own = asked[here], seeds[here]
            chances = [torch.Generator("cpu").manual_seed(s) for s in own]
            sources = [p.source for p in part if p.source]
            if sources and len(sources) < len(part):
                raise InputError(
                    "generators: diffusers is asked for pictures and for edits; give each a "
                    "build of its own"
                )
            given = {"image": sources} if sources else {}
            try:
                images = self.pipeline(
                    prompt=[p.text for p in part], generator=chances, **given, **self.settings
                ).images
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                # what a pipeline needs is not known before it runs
                self.batch = -(-min(self.batch, len(part)) // 2)
                torch.cuda.empty_cache()
                continue
            found += [
                Picture(p, image, self.model, s)
                for p, image, s in zip(part, images, own, strict=True)
            ]
        return found


@register_generator("folder")
class Folder:
    """Pictures that are there: a folder's metadata.jsonl has a line {"file_name": …, "prompt": …}
    for each, and for an edit its "source". Raises InputError for a folder without that list, and
    one for all that it names and that are not there."""

    def __init__(self, model: str, images: int):
        self.folder, self.images = model, images
        self.list = path = Path(model) / "metadata.jsonl"
        self.files: dict[str, list[tuple[Path, str]]] = {}
        self.named: set[Path] = set()
        """Pictures and sources that the list names."""
        faults: list[str] = []
        for number, row in read_rows(path):
            where = f"line {number} of {path}"
            text, file = (
                text_field(row, "prompt", where),
                beside(path, text_field(row, "file_name", where)),
            )
            if not file.is_file():
                faults.append(f"{where}: {str(file)!r} is not a file; give a path beside the list")
                continue
            source = None
            if row.get("source") is not None:
                source_file = beside(path, text_field(row, "source", where))
                try:
                    source = read_image(source_file)
                except InputError as error:
                    faults.append(f"{where}: {error}")
                    continue
                self.named.add(source_file)
            self.named.add(file)
            self.files.setdefault(Prompt(text, source).key, []).append((file, where))
        _refuse(faults)

    def __call__(self, shard: Shard) -> list[Picture]:
        return list(self._found(shard.prompts))

    def left_out(self, prompts: Iterable[Prompt]) -> dict[str, list[str]]:
        """Pictures that a build of ``prompts`` does not use, and prompts without a picture, by the
        reason. Raises InputError where no prompt has one."""
        asked = {p.key: p.text for p in prompts}
        if not self.files.keys() & asked.keys():
            first = next(iter(asked.values()))
            raise InputError(
                f"generators: {str(self.list)!r} has no picture of any of the {len(asked)} "
                f"prompts (the first: {first!r}); "
                "its prompts must be written as they are asked"
            )
        names = {
            key: [relpath(file, self.list.parent) for file, _ in files]
            for key, files in self.files.items()
        }
        here = sorted(self.list.parent.iterdir())
        unlisted = [
            f
            for f in here
            if f.suffix.lower() in EXTENSIONS and f not in self.named and not f.name.startswith(".")
        ]
        return {
            "pictures of prompts that are not asked": [
                n for key in names if key not in asked for n in names[key]
            ],
            f"pictures beyond images = {self.images}": [
                n for key in names if key in asked for n in names[key][self.images :]
            ],
            f"pictures that {self.list.name} does not name": [f.name for f in unlisted],
            "prompts without a picture": [text for key, text in asked.items() if key not in names],
        }

    def check_pictures(self, prompts: Iterable[Prompt]) -> None:
        """Read every picture that a build of ``prompts`` uses. Raises one InputError for all that
        cannot be read."""
        files = [each for p in prompts for each in self.files.get(p.key, [])[: self.images]]

        def fault(file_and_line: tuple[Path, str]) -> str:
            file, where = file_and_line
            try:
                read_image(file)
            except InputError as error:
                return f"{where}: {error}"
            return ""

        with ThreadPoolExecutor() as pool:  # decoding is done without Python's lock
            _refuse([words for words in pool.map(fault, files) if words])

    def _found(self, prompts: tuple[Prompt, ...]) -> Iterator[Picture]:
        for prompt in prompts:
            for file, where in self.files.get(prompt.key, [])[: self.images]:
                try:
                    yield Picture(prompt, read_image(file), self.folder)
                except InputError as error:
                    raise InputError(f"generators: {where}: {error}") from error


def _refuse(faults: Sequence[str]) -> None:
    """Raises one InputError for the ``faults`` of a folder's pictures, the first few in words."""
    if faults:
        n_others = len(faults) - FAULTS_TOLD
        others = f"; and {n_others} more" if n_others > 0 else ""
        count = f"{len(faults)} pictures cannot be used: " if len(faults) > 1 else ""
        raise InputError(f"generators: {count}{'; '.join(faults[:FAULTS_TOLD])}{others}")


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
        made = []
        for prompt in shard.prompts:
            source = {} if prompt.source is None else {"source": prompt.source}
            if source and not self.can_edit:
                raise InputError(
                    f"generators: {self.name!r} cannot edit; give its function a parameter "
                    "'source', or leave out prompts with a source"
                )
            for _ in range(self.images):
                seed = next(seeds)
                image = self.function(prompt.text, seed, **source, **self.settings)
                if not isinstance(image, Image.Image):
                    raise InputError(
                        f"generators: {self.name!r} returned {type(image).__name__}; it must "
                        "return an image of PIL"
                    )
                made.append(Picture(prompt, image.convert("RGB"), self.name, seed))
        return made


def make_generator(
    config: GeneratorConfig,
    load: Load,
    seed: int,
    device: str,
    prompt_options: Mapping[str, Any] | None = None,
) -> Generator:
    """The generator that a config asks for, loaded."""
    thing = registry.generators.get(config.kind)
    if not isinstance(thing, type):
        return FunctionGenerator(thing, config.kind, seed, config.images, config.settings)
    return plugin_settings.build(
        thing,
        config.settings,
        model=config.model,
        images=config.images,
        batch=config.batch,
        load=load,
        seed=seed,
        device=device,
        prompt_options=dict(prompt_options or {}),
    )


def check_folders(configs: Sequence[GeneratorConfig], shards: Sequence[Shard]) -> None:
    """Read all pictures of folders that ``shards`` use, before anything is drawn. Raises
    InputError."""
    prompts = [p for shard in shards for p in shard.prompts]
    for config in configs:
        if config.kind == "folder":
            Folder(config.model, config.images).check_pictures(prompts)


def left_out(
    configs: Sequence[GeneratorConfig], shards: Sequence[Shard]
) -> dict[str, dict[str, list[str]]]:
    """Of each folder: what a build does not use of it, and what it lacks, by the reason. Raises
    InputError."""
    prompts = [p for shard in shards for p in shard.prompts]
    folders = [c for c in configs if c.kind == "folder"]
    return {c.model: Folder(c.model, c.images).left_out(prompts) for c in folders}
