"""The judge alone, on the images of another model's episodes: the same for all models that are compared.

A model's verdicts on its own images say how it will redraw, but those images differ between models: the better it draws, the
harder are the few wrong ones. Here every image of a folder that ``bench geneval`` wrote is judged for itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from secondlook.bench.audit import read_codes
from secondlook.bench.base import agreement
from secondlook.engine.decode import Engine
from secondlook.files import versions, write_json
from secondlook.introspect import Sampling
from secondlook.types import Request
from secondlook.world.language import parse
from secondlook.world.read import judge


@dataclass(frozen=True)
class Settings:
    """Everything that the verdicts depend on."""

    model: str
    images: str
    """The folder whose images are judged."""
    seed: int = 0


@dataclass(frozen=True)
class Said:
    """One image's prompt, whether it is right, and the model's verdict on it."""

    prompt: str
    right: bool
    yes: bool
    p_yes: float


def run(engine: Engine, painter: Engine, settings: Settings) -> list[Said]:
    """Judge every image; ``painter`` decodes the codes, as the model that drew them does. Raises InputError."""
    _, drawn = read_codes(Path(settings.images))
    prompts = [prompt for prompt, _ in drawn]
    images = painter.pictures([codes for _, codes in drawn])
    rule = Sampling.of(engine.janus.net.generation_config).judge_rule(engine.protocol.yes, engine.protocol.no)
    requests = [
        Request("judge", engine.protocol.judge(prompt, [image], []), settings.seed * 10**6 + i)
        for i, (prompt, image) in enumerate(zip(prompts, images, strict=True))
    ]
    return [
        Said(prompt, judge(parse(prompt), image).correct, t.tokens[0] == engine.protocol.yes, float(t.p_yes or 0))
        for prompt, image, t in zip(prompts, images, engine.write(requests, rule, 1), strict=True)
    ]


def write(out: Path, said: list[Said], settings: Settings) -> dict:
    """verdicts.json and, last, result.json; returns the result."""
    right, prompts = [s.right for s in said], [s.prompt for s in said]
    result = {
        "sampled": agreement(right, [s.yes for s in said], prompts),
        "greedy": agreement(right, [s.p_yes > 0.5 for s in said], prompts),
        "settings": asdict(settings),
        "versions": versions(),
    }
    write_json(out / "verdicts.json", [asdict(s) for s in said])
    write_json(out / "result.json", result)
    return result
