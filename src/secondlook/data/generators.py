"""Where pictures of prompts come from: a model of this package, a pipeline of diffusers, a folder,
the miniature's renderer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, turn_seed
from secondlook.errors import InputError
from secondlook.io import EXTENSIONS, beside, read_image, read_rows, text_field
from secondlook.mini import datasets
from secondlook.types import Prompt, Request


@dataclass(frozen=True)
class GeneratorConfig:
    """One generator. Which fields it needs depends on ``kind``."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    kind: Literal["model", "diffusers", "folder", "render"] = "model"
    """A model of this package, a text-to-image pipeline of diffusers, pictures that are there, or
    right pictures and near misses of the miniature's world (for its own prompts)."""
    model: str = ""
    """Model: a shipped model, a folder or a hub id. Diffusers: a folder or a hub id. Folder: a
    folder with metadata.jsonl, each line {"file_name": …, "prompt": …} and for an edit its
    "source". Render: the model whose image tokenizer the pictures pass through, so that a verdict
    cannot be learned from their origin alone (a clean render is wrong, a decoded picture right)."""
    images: int = 4
    """Pictures a prompt; render: one of them is right."""
    aimed: float = 0.5
    """Render: share of the near misses that attack what the prompt asks for: a relation, a count,
    who has which colour."""
    guidance: float | None = None
    """Default: the model's own."""
    steps: int = 28
    """Diffusers: denoising steps."""
    batch: int = 96
    """Pictures drawn together, fewer where a GPU's memory does not hold so many."""
    licence: str = ""
    """Of the pictures, for the manifest."""

    def __post_init__(self) -> None:
        for name in ("images", "batch", "steps"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config: generators: {name} is {getattr(self, name)}; it must be at least 1"
                )
        if not self.model:
            raise InputError(
                f"config: generators: model is empty; a generator of kind {self.kind!r} needs one"
            )


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
    def __call__(self, shard: Shard) -> list[Picture]:
        """Pictures of a shard's prompts."""
        ...


Load = Callable[[str], Engine]


class Model:
    """Drawn by a model of this package, without a second look."""

    def __init__(self, config: GeneratorConfig, load: Load, seed: int):
        self.config, self.seed, self.engine = config, seed, load(config.model)

    def __call__(self, shard: Shard) -> list[Picture]:
        c, rule = self.config, SamplingConfig.of(self.engine.janus.net.generation_config)
        if c.guidance is not None:
            rule = SamplingConfig(guidance=c.guidance, edit_guidance=c.guidance)
        asked = [prompt for prompt in shard.prompts for _ in range(c.images)]
        seeds = [
            turn_seed(self.seed * 10**9 + shard.start * c.images + k, 0) for k in range(len(asked))
        ]
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
        return [Picture(p, i, c.model, s) for p, i, s in zip(asked, images, seeds, strict=True)]

    def _request(self, p: Prompt, codes: dict[str, tuple[int, ...]], seed: int) -> Request:
        template = self.engine.template
        return (
            Request("edit", template.edit(codes[p.key], p.text), seed)
            if p.source
            else Request("draw", template.draw(p.text), seed)
        )


class Rendered:
    """Of the world's prompts of the same shard."""

    def __init__(self, config: GeneratorConfig, load: Load, seed: int, kinds: dict[str, float]):
        self.config, self.seed, self.kinds, self.engine = config, seed, kinds, load(config.model)

    def __call__(self, shard: Shard) -> list[Picture]:
        c, rng = self.config, np.random.default_rng([self.seed, shard.start])
        wanted, found = {p.key: p for p in shard.prompts}, list[tuple[Prompt, Image.Image, str]]()
        for p in datasets.prompts(rng, shard.size, self.kinds):
            if isinstance(p, datasets.EditPicture):
                wrong = datasets.wrong_edits(rng, p, c.images - 1)
            else:
                wrong = [image for image, _ in datasets.wrong(rng, p, c.images - 1, c.aimed)]
            if asked := wanted.get(p.prompt.key):
                found.append((asked, p.image, "render"))
                found += [(asked, image, "near miss") for image in wrong]
        through = self.engine.pictures(self.engine.codes([image for _, image, _ in found]))
        return [
            Picture(prompt, image, source)
            for (prompt, _, source), image in zip(found, through, strict=True)
        ]


class Diffusers:
    """Drawn by a text-to-image pipeline. Raises InputError where diffusers is not installed or
    cannot load it."""

    def __init__(self, config: GeneratorConfig, device: str, seed: int):
        try:
            import diffusers
        except ImportError as error:
            raise InputError(
                "generators: diffusers is not installed; run pip install 'secondlook[diffusers]'"
            ) from error
        import torch

        self.config, self.device, self.seed, self.batch = config, device, seed, config.batch
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            self.pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
                config.model, torch_dtype=dtype
            ).to(device)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise InputError(
                f"generators: {config.model!r} is no pipeline that diffusers loads ({why})"
            ) from error
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, shard: Shard) -> list[Picture]:
        import torch

        c = self.config
        asked = [prompt for prompt in shard.prompts for _ in range(c.images)]
        seeds = [
            turn_seed(self.seed * 10**9 + shard.start * c.images + k, 0) % 2**63
            for k in range(len(asked))
        ]
        settings = {"num_inference_steps": c.steps} | (
            {} if c.guidance is None else {"guidance_scale": c.guidance}
        )
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
                    prompt=[p.text for p in part], generator=chances, **given, **settings
                ).images
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch = -(
                    -min(self.batch, len(part)) // 2
                )  # what a pipeline needs is not known before it runs
                torch.cuda.empty_cache()
                continue
            found += [
                Picture(p, image, c.model, s) for p, image, s in zip(part, images, own, strict=True)
            ]
        return found


class Folder:
    """Pictures that are there. Raises InputError for a folder without a list of them."""

    def __init__(self, config: GeneratorConfig):
        self.config = config
        self.list = path = Path(config.model) / "metadata.jsonl"
        self.files: dict[str, list[tuple[Path, str]]] = {}
        self.named: set[Path] = set()
        """Pictures and sources that the list names."""
        for number, row in read_rows(path):
            where = f"line {number} of {path}"
            text, file = (
                text_field(row, "prompt", where),
                beside(path, text_field(row, "file_name", where)),
            )
            if not file.is_file():
                raise InputError(
                    f"generators: {where}: {str(file)!r} is not a file; give a path beside the list"
                )
            source = None
            if row.get("source") is not None:
                source_file = beside(path, text_field(row, "source", where))
                source = read_image(source_file)
                self.named.add(source_file)
            self.named.add(file)
            self.files.setdefault(Prompt(text, source).key, []).append((file, where))

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
            f"pictures beyond images = {self.config.images}": [
                n for key in names if key in asked for n in names[key][self.config.images :]
            ],
            f"pictures that {self.list.name} does not name": [f.name for f in unlisted],
            "prompts without a picture": [text for key, text in asked.items() if key not in names],
        }

    def _found(self, prompts: tuple[Prompt, ...]) -> Iterator[Picture]:
        for prompt in prompts:
            for file, where in self.files.get(prompt.key, [])[: self.config.images]:
                try:
                    yield Picture(prompt, read_image(file), self.config.model)
                except InputError as error:
                    raise InputError(f"generators: {where}: {error}") from error


def left_out(
    configs: Sequence[GeneratorConfig], shards: Sequence[Shard]
) -> dict[str, dict[str, list[str]]]:
    """Of each folder: what a build does not use of it, and what it lacks, by the reason. Raises
    InputError."""
    prompts = [p for shard in shards for p in shard.prompts]
    return {c.model: Folder(c).left_out(prompts) for c in configs if c.kind == "folder"}


def make(
    config: GeneratorConfig, load: Load, seed: int, kinds: dict[str, float], device: str
) -> Generator:
    """The generator that a config asks for, loaded."""
    if config.kind == "model":
        return Model(config, load, seed)
    if config.kind == "render":
        return Rendered(config, load, seed, kinds)
    return Diffusers(config, device, seed) if config.kind == "diffusers" else Folder(config)
