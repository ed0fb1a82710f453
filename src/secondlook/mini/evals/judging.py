"""The judge alone, on images that another model drew: how often it agrees with the truth, how far
its P(Yes) may be believed, and whether it names what is wrong.

A model's verdicts on its own images say how it will redraw, but those images differ between models:
the better it draws, the harder are the few wrong ones. Here every image of a folder that ``eval
mini-geneval`` wrote, or of a file of labelled pairs (`data.labelled_images`), is judged for itself.
Source: the consistency test of arXiv 2506.01480, table 3; beyond it: balanced accuracy, kappa,
AUROC and calibration, for always saying Yes agrees with a good generator already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from pydantic import Field

from secondlook.data.labelled_images import lines_of, read_pairs
from secondlook.data.prompts import check_prompts
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.errors import InputError
from secondlook.evals.benchmark import MODEL_HELP, SEED_HELP, Benchmark, EvalSession
from secondlook.evals.intervals import interval_text, signed_text, written_by
from secondlook.io import counted, finite, read_json, versions, whole_file, write_json
from secondlook.mini.evals.audit import decode, read_codes
from secondlook.mini.evals.judge_measures import (
    ImageVerdict,
    differences,
    overall,
    verdict_agreement,
)
from secondlook.mini.world.compound import parse
from secondlook.mini.world.reader import judge, to_canvas
from secondlook.mini.world.reasons import holds_true
from secondlook.models.janus.template import ChatTemplate
from secondlook.registry import register_benchmark
from secondlook.types import Request


@dataclass(frozen=True)
class LabelledImage:
    """An image of a prompt, and whether it is right."""

    prompt: str
    image: Image
    right: bool
    of_miniature: bool
    """The prompt is of the miniature's world, so that reasons can be checked."""
    source: Image | None = None
    """What was edited, where ``prompt`` is an instruction."""


@register_benchmark("mini-judging")
class MiniJudging(Benchmark):
    """The judge alone, on images that another model drew: agreement, AUROC, calibration,
    reasons."""

    title = "The model as judge"
    suite = "mini"
    argument = "images"
    default_batch = 64
    files_written = "result.json, verdicts.json, reliability.png"
    page = "reliability.png"

    images: Path = Field(
        description="A folder that eval mini-geneval wrote, or labelled pairs (.jsonl, .parquet)."
    )
    model: str = Field("mini", description=MODEL_HELP)
    over: list[Path] = Field(
        [],
        exclude=True,
        description="Folders of other models' eval mini-judging on the same images.",
    )
    seed: int = Field(0, ge=0, description=SEED_HELP)

    def check(self) -> None:
        from secondlook.models.shipped import locate

        if self.drawn_by_a_model():
            locate(read_codes(self.images)[0])
        else:
            labelled_pairs(self.images, self._template())
        for folder in self.over:
            read_verdicts(folder)
        super().check()

    def drawn_by_a_model(self) -> bool:
        """Whether the images are codes that have to be decoded."""
        return self.images.is_dir() and (self.images / "episodes.json").exists()

    def _template(self) -> ChatTemplate:
        from secondlook.models.janus.checkpoint import load_tokenizer

        return ChatTemplate(load_tokenizer(self.model))

    def run(self, session: EvalSession) -> dict[str, Any]:
        if self.drawn_by_a_model():
            labelled_images = drawn_images(self.images, session.load_engine)
        else:
            labelled_images, unlabelled_names = labelled_pairs(self.images, self._template())
            if unlabelled_names:
                num_left_out = counted(len(unlabelled_names), "pair")
                session.say(
                    f"{num_left_out} left out, for want of a label; first {unlabelled_names[0]}"
                )
        verdicts, seconds = judge_images(
            session.load_engine(self.model), labelled_images, self.seed
        )
        over_others = []
        for folder in self.over:
            over_others.append(differences(verdicts, read_verdicts(folder), str(folder)))
        return write(session.out, verdicts, self.settings(), seconds, over_others)

    @classmethod
    def lines(cls, result: dict[str, Any]) -> list[str]:
        overall = result["overall"]
        text_lines = [
            f"balanced accuracy {interval_text(overall['balanced_accuracy'])}, "
            f"{counted(overall['verdicts'], 'image')}",
            f"AUROC {interval_text(overall['auroc'])}, ECE {overall['ece']:.3f}, kappa "
            f"{overall['kappa']:.3f}",
        ]
        if "reason_names_a_failure" in overall:
            share_text = interval_text(overall["reason_names_a_failure"])
            text_lines.append(
                f"reasons name what failed: {share_text} of {overall['reasons']} true No"
            )
        if overall["calibrated"]:
            threshold = overall["calibrated"]["threshold"]
            accuracy_text = interval_text(overall["calibrated"]["balanced_accuracy"])
            text_lines.append(
                f"threshold {threshold:.3f} of one half of the prompts: {accuracy_text} on the "
                "other"
            )
        for row in result["over"]:
            text_lines.append(f"over {row['other']}:")
            for name, difference_interval in row.items():
                if name != "other":
                    measure = name.replace("_", " ")
                    text_lines.append(f"  {measure:25} {signed_text(difference_interval)}")
        return [*text_lines, f"{result['images_per_second']:.1f} images/s"]

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        return {"number": result["overall"]["balanced_accuracy"]["mean"]}


# ---------------------------------------------------------------------- images and verdicts


def drawn_images(folder: Path, load_engine: Callable[[str], Engine]) -> list[LabelledImage]:
    """Every image of a folder that ``eval mini-geneval`` wrote, decoded by the model that drew
    it."""
    model, coded_images = read_codes(folder)
    images = decode(load_engine(model), coded_images)
    labelled_images = []
    for (prompt, _), image in zip(coded_images, images, strict=True):
        is_right = judge(parse(prompt), image).correct
        labelled_images.append(LabelledImage(prompt, image, is_right, of_miniature=True))
    return labelled_images


def labelled_pairs(path: Path, template: ChatTemplate) -> tuple[list[LabelledImage], list[str]]:
    """The pairs of a file or folder that have a label, and the others' names. Raises InputError
    where none has one, and for a prompt that the model cannot read."""
    pairs = read_pairs(path)
    check_prompts(template, lines_of(pairs))
    labelled_images, unlabelled_names = [], []
    for pair in pairs:
        if pair.good is None:
            unlabelled_names.append(pair.name)
        else:
            source = pair.asked().source
            image = pair.open()
            labelled_images.append(LabelledImage(pair.prompt, image, pair.good, False, source))
    if not labelled_images:
        raise InputError(
            f"images: no pair of {str(path)!r} says whether it is good; give each a field good = "
            "true or false"
        )
    return labelled_images, unlabelled_names


def judge_images(
    engine: Engine, items: Sequence[LabelledImage], seed: int = 0
) -> tuple[list[ImageVerdict], float]:
    """Judge every image once, with a sampled verdict and a reason; returns the verdicts and the
    seconds they took."""
    template = engine.template
    sampling = SamplingConfig.of(engine.janus.net.generation_config)
    requests = []
    for i, item in enumerate(items):
        segments = template.judge(item.prompt, [item.image], [], item.source)
        requests.append(Request("judge", segments, seed * 10**6 + i))
    start_time = time.perf_counter()
    judge_params = sampling.judge_params(template.yes, template.no)
    turns = engine.write(requests, judge_params, sampling.reason_tokens)
    seconds = time.perf_counter() - start_time
    verdicts = []
    for item, turn in zip(items, turns, strict=True):
        says_yes = turn.tokens[0] == template.yes  # the verdict is one token, the reason follows
        reason = template.words(turn.tokens[1:]).lstrip(", ")
        reason_holds: bool | None = None
        if item.of_miniature and not item.right and not says_yes:
            reason_holds = holds_true(parse(item.prompt), to_canvas(item.image), reason)
        p_yes = float(turn.p_yes or 0)
        verdicts.append(
            ImageVerdict(item.prompt, item.right, says_yes, p_yes, reason, reason_holds)
        )
    return verdicts, seconds


def read_verdicts(folder: Path) -> list[ImageVerdict]:
    """The verdicts of a folder of ``eval mini-judging``. Raises InputError."""
    verdicts_path = folder / "verdicts.json"
    with written_by("eval mini-judging", verdicts_path):
        verdicts = [ImageVerdict(**row) for row in read_json(verdicts_path, list)]
        for verdict in verdicts:
            right_types = (
                isinstance(verdict.prompt, str) and type(verdict.right) is type(verdict.yes) is bool
            )
            if not right_types or not finite(verdict.p_yes, 0, 1):
                raise ValueError(
                    f"a verdict on {verdict.prompt!r} has p_yes {verdict.p_yes!r}, yes "
                    f"{verdict.yes!r}, right {verdict.right!r}"
                )
    return verdicts


# ------------------------------------------------------------------------------------------ result


def write(
    out: Path,
    verdicts: Sequence[ImageVerdict],
    settings: dict[str, Any],
    seconds: float = 0.0,
    over: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """verdicts.json, reliability.png and, last, result.json (with ``over``, differences to other
    judges); returns the result."""
    sampled_yes = np.array([verdict.yes for verdict in verdicts])
    greedy_yes = np.array([verdict.p_yes > 0.5 for verdict in verdicts])
    result: dict[str, Any] = {
        "overall": overall(verdicts),
        "sampled": verdict_agreement(verdicts, sampled_yes),
        "greedy": verdict_agreement(verdicts, greedy_yes),
        "images_per_second": len(verdicts) / seconds if seconds else None,
        "over": list(over),
        "settings": settings,
        "versions": versions(),
    }
    write_json(out / "verdicts.json", [asdict(verdict) for verdict in verdicts])
    plot(out / "reliability.png", result["overall"])
    write_json(out / "result.json", result)
    return result


def plot(path: Path, result: dict[str, Any]) -> None:
    """Share of right images over P(Yes), and how many images there are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    p_yes, right_shares, image_counts = [], [], []
    for bin_row in result["reliability"]:
        p_yes.append(bin_row["p_yes"])
        right_shares.append(bin_row["right"])
        image_counts.append(bin_row["images"])
    figure, (share_axes, count_axes) = plt.subplots(
        2, 1, figsize=(4.4, 5.2), height_ratios=(3, 1), sharex=True
    )
    share_axes.plot([0, 1], [0, 1], color="0.7", lw=1)  # a calibrated judge
    share_axes.plot(p_yes, right_shares, marker="o", ms=4)
    share_axes.set_ylabel("share that is right")
    share_axes.set_title(
        f"ECE {result['ece']:.3f}, AUROC {result['auroc']['mean']:.3f}", fontsize=10
    )
    count_axes.bar(p_yes, image_counts, width=0.06)
    count_axes.set_yscale("log")
    count_axes.set_ylabel("images")
    count_axes.set_xlabel("P(Yes)")
    for axes in (share_axes, count_axes):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    with whole_file(path) as temporary_path:
        figure.savefig(temporary_path, dpi=110, format="png")
    plt.close(figure)
