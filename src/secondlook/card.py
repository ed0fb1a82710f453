"""The model card of a checkpoint: what it was made from, by which settings, and how it scores."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from secondlook.errors import InputError
from secondlook.io import is_file, read_json
from secondlook.models.shipped import SHIPPED
from secondlook.report import page

PRIVATE = re.compile(r"(url|key|token|key_variable|answers)$")
"""Settings of the machine that trained: addresses, keys, files of stored answers."""
MAX_STAGES = 10
MAX_SCORE_DEPTH = 3
LICENSES = {"deepseek-ai/Janus-Pro-1B": "mit", "deepseek-ai/Janus-Pro-7B": "mit"} | dict.fromkeys(
    SHIPPED, "apache-2.0"
)
"""Licences of known base models, as their own cards state them."""


@dataclass(frozen=True)
class Stage:
    """One training run that a checkpoint has gone through."""

    job: str
    """What kind of run, in words."""
    data: str
    """What it learned from."""
    settings: list[tuple[str, str]]
    """(name, value) of all of its settings but the private ones."""


@dataclass(frozen=True)
class ScoreRow:
    """A number of a benchmark with its 95 % interval."""

    benchmark: str
    what: str
    mean: float
    low: float
    high: float


def lineage(checkpoint: Path) -> tuple[list[Stage], str]:
    """The runs behind a checkpoint, the first one first, and the model that they began with ("":
    unknown).

    A run's folder has ``config.json`` (its settings) and ``final`` (its checkpoint); ``model`` of
    the settings is the checkpoint that it began with.
    """
    stages: list[Stage] = []
    base = ""
    while len(stages) < MAX_STAGES:
        config_path = checkpoint.resolve().parent / "config.json"
        if not is_file(config_path):
            break
        config = read_json(config_path, dict)
        if not isinstance(config.get("model"), str):
            break
        stages.insert(0, stage_of(config))
        base = config["model"]
        if not Path(base).is_dir():
            break
        # a folder: the run before, whose own base is what counts
        checkpoint, base = Path(base), ""
    is_published = base in SHIPPED or re.fullmatch(r"[\w.-]+/[\w.-]+", base)
    return stages, base if is_published else ""


def stage_of(config: Mapping[str, Any]) -> Stage:
    """A run in words, from its settings."""
    if "algorithm" in config:
        job = f"Reinforcement learning ({str(config['algorithm']).upper()})"
        data = f"prompts: {without_folder(config.get('prompts') or 'mini')}"
    else:
        job = "Supervised fine-tuning"
        data = f"data: {without_folder(config.get('data') or 'not stated')}"
    return Stage(job, data, list(public_settings(config)))


def public_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of nested settings, without addresses, keys and folders of this machine.

    A name is dotted; a table in a list is named by its place, as ``rewards.0.kind``.
    """
    items = config.items() if isinstance(config, Mapping) else enumerate(config)
    for key, value in items:
        name = f"{prefix}{key}"
        if PRIVATE.search(str(key)):
            continue
        if _is_nested(value):
            yield from public_settings(value, f"{name}.")
        else:
            yield name, without_folder(value)


def _is_nested(value: Any) -> bool:
    """A table that is not empty, or a list with tables in it."""
    if isinstance(value, list):
        return any(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping) and bool(value)


def without_folder(value: Any) -> str:
    """A setting's text; of an absolute path the last two parts, which name no user's folder."""
    if isinstance(value, list):
        return ", ".join(without_folder(item) for item in value)
    if isinstance(value, str) and Path(value).is_absolute():
        return "/".join(Path(value).parts[-2:])
    return str(value)


def score_rows(path: Path) -> list[ScoreRow]:
    """The numbers with intervals of a benchmark's result.json: those of ``overall``, or of its
    sections where it has none. ``path`` may be its folder. Raises InputError for a file that is no
    result."""
    result_path = path / "result.json" if path.is_dir() else path
    result = read_json(result_path, dict)
    settings = result.get("settings")
    benchmark = settings.get("benchmark") if isinstance(settings, dict) else None
    title = str(result.get("title") or benchmark or result_path.resolve().parent.name)
    intervals = list(_intervals(result.get("overall"), ""))
    if not intervals:
        intervals = list(_intervals(result, ""))
    return [ScoreRow(title, *interval) for interval in intervals]


def _intervals(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, float, float, float]]:
    """(name, mean, low, high) of all intervals in nested dictionaries."""
    if not isinstance(value, dict) or depth > MAX_SCORE_DEPTH:
        return
    mean, low, high = value.get("mean"), value.get("low"), value.get("high")
    if _is_finite(mean) and _is_finite(low) and _is_finite(high):
        yield name or "score", float(mean), float(low), float(high)
        return
    for key, inner_value in value.items():
        inner_name = f"{name} {key}".strip().replace("_", " ")
        yield from _intervals(inner_value, inner_name, depth + 1)


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, float | int) and math.isfinite(value)


def model_card(
    checkpoint: Path, repo_id: str, results: Sequence[Path] = (), license_id: str = ""
) -> str:
    """The text of a README.md for the hub.

    Args:
        checkpoint: The checkpoint's folder. Its run's settings are looked up beside it.
        repo_id: Where it will be, as owner/name.
        results: Files ``result.json`` of ``secondlook eval``, or their folders.
        license_id: As the hub writes it (``mit``); "": the base model's where it is known.
    """
    from huggingface_hub import ModelCardData

    stages, base = lineage(checkpoint)
    license_id = license_id or LICENSES.get(base, "")
    scores = _all_scores(results)
    is_hub_id = "/" in base
    metadata = ModelCardData(
        license=license_id or None,
        library_name="secondlook",
        pipeline_tag="text-to-image",
        tags=["janus", "unified-multimodal", "self-evaluation"],
        base_model=base if is_hub_id else None,
    )
    return page(
        "model_card.md",
        metadata=metadata.to_yaml(),
        name=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        base=base,
        is_hub_id=is_hub_id,
        stages=stages,
        scores=scores,
        license_id=license_id,
    )


def _all_scores(results: Sequence[Path]) -> list[ScoreRow]:
    scores: list[ScoreRow] = []
    for path in results:
        scores += score_rows(path)
    return scores


def extended_card(card: str, results: Sequence[Path] = (), license_id: str = "") -> str:
    """A card that is there already, with the numbers of ``results`` at its end and, where one is
    given, another licence. Raises InputError where its metadata cannot be read."""
    from huggingface_hub import ModelCard

    if license_id:
        try:
            parsed_card = ModelCard(card, ignore_metadata_errors=False)
        except Exception as error:  # YAML's errors, and the hub's own
            reason = " ".join(str(error).split())
            raise InputError(
                f"license: the README.md's metadata cannot be read: {reason}"
            ) from error
        parsed_card.data.__dict__["license"] = license_id  # CardData keeps its fields there
        card = str(parsed_card)
    scores = _all_scores(results)
    if scores:
        card = f"{card.rstrip()}\n\n## Further scores\n\n{page('model_scores.md', scores=scores)}\n"
    return card
