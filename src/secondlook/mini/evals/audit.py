"""Is the reader that rewards and scores fooled? Contact sheets of a benchmark's images for the eye,
and a second detector.

From what ``eval mini-geneval`` or ``eval mini-geneval-plus`` wrote: every image is decoded from its
codes again, scored by the reader (`world.reader`) and judged by an independent detector
(`world.second_detector`).
``highest.png`` shows the images with the highest scores, ``random.png`` a random choice,
``disagreements.png`` those on which the detectors differ.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.evals.benchmark import Benchmark, EvalSession
from secondlook.evals.intervals import Sample, bootstrap, by_prompt, written_by
from secondlook.io import counted, read_json, versions, write_image, write_json
from secondlook.mini.world import second_detector
from secondlook.mini.world.compound import parse
from secondlook.mini.world.language import Spec
from secondlook.mini.world.reader import Verdict, judge
from secondlook.registry import register_benchmark

COMMAND = "eval mini-geneval or mini-geneval-plus"
SHEET_IMAGES, SHEET_COLUMNS = 100, 10
CodedImage = tuple[str, tuple[int, ...]]
"""A prompt and the codes that were drawn."""


@register_benchmark("mini-audit")
class MiniAudit(Benchmark):
    """Contact sheets of a mini-geneval's (or -plus's) images, and whether a second, independent
    detector agrees with the reader."""

    title = "Audit of the miniature's reader"
    suite = "mini"
    argument = "folder"
    files_written = "highest.png, random.png, disagreements.png, result.json"
    page = "disagreements.png"

    folder: Path = Field(description="A folder that eval mini-geneval or mini-geneval-plus wrote.")

    def check(self) -> None:
        from secondlook.models.shipped import locate

        locate(read_codes(self.folder)[0])

    def run(self, session: EvalSession) -> dict[str, Any]:
        model, coded = read_codes(self.folder)
        return write(session.out, decode_and_judge(session.load_engine(model), coded))

    @classmethod
    def lines(cls, result: dict[str, Any]) -> list[str]:
        agreed = "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**result["agreement"])
        return [f"the detectors agree on {agreed} of {counted(result['images'], 'image')}"]


class JudgedTwice(NamedTuple):
    """A row, an image, the reader's verdict, and whether the second detector finds it right."""

    spec: Spec
    image: Image.Image
    reader: Verdict
    second_right: bool


def read_codes(folder: Path) -> tuple[str, list[CodedImage]]:
    """The model and every image of a folder that ``COMMAND`` wrote. Raises InputError."""
    path = folder / "episodes.json"
    with written_by(COMMAND, folder / "result.json"):
        model = read_json(folder / "result.json", dict)["settings"]["model"]
        if not isinstance(model, str):
            raise TypeError("its model is no name")
    coded_images = []
    with written_by(COMMAND, path):
        for episode in read_json(path, list):
            parse(episode["prompt"])
            for round_row in episode["rounds"]:
                codes = tuple(round_row["codes"])
                if not codes or any(type(code) is not int or code < 0 for code in codes):
                    raise ValueError("an image's codes are not numbers from 0 on")
                coded_images.append((episode["prompt"], codes))
    return model, coded_images


def decode(engine: Engine, coded: Sequence[CodedImage]) -> list[Image.Image]:
    """Images of their codes. Raises InputError where those are not the model's."""
    num_codes = engine.janus.n_codes
    codebook_size = engine.janus.net.config.vq_config.num_embeddings
    for prompt, codes in coded:
        if len(codes) != num_codes or max(codes) >= codebook_size:
            raise InputError(
                f"folder: the codes of {prompt!r} are not {num_codes} numbers below "
                f"{codebook_size}, as this model draws"
            )
    return engine.pictures([codes for _, codes in coded])


def decode_and_judge(engine: Engine, coded: Sequence[CodedImage]) -> list[JudgedTwice]:
    """Decode every image and ask both detectors."""
    judged_images = []
    for (prompt, _), image in zip(coded, decode(engine, coded), strict=True):
        spec = parse(prompt)
        second_right = second_detector.agrees(spec, image)
        judged_images.append(JudgedTwice(spec, image, judge(spec, image), second_right))
    return judged_images


def write(
    out: Path, judged: Sequence[JudgedTwice], n: int = SHEET_IMAGES, seed: int = 0
) -> dict[str, Any]:
    """highest.png, random.png, disagreements.png and, last, result.json; returns the result."""
    agreement_samples: list[Sample] = []
    disagreements: list[JudgedTwice] = []
    reader_alone = second_alone = 0  # images that only one of the two calls right
    for judged_image in judged:
        detectors_agree = judged_image.reader.correct == judged_image.second_right
        agreement_samples.append(Sample("same", judged_image.spec.prompt, float(detectors_agree)))
        if not detectors_agree:
            disagreements.append(judged_image)
            reader_alone += judged_image.reader.correct
            second_alone += judged_image.second_right
    shuffled_images = [judged[i] for i in np.random.default_rng(seed).permutation(len(judged))]
    # many have the highest score: the sheet shows a random choice of them
    by_score = sorted(shuffled_images, key=lambda judged_image: -judged_image.reader.score)
    write_image(out / "highest.png", sheet(by_score[:n]))
    write_image(out / "random.png", sheet(shuffled_images[:n]))
    write_image(out / "disagreements.png", sheet(disagreements[:n]))
    agreement = bootstrap(
        by_prompt(agreement_samples), lambda verdict_values: float(verdict_values["same"].mean())
    )
    result = {
        "images": len(judged),
        "agreement": agreement,
        "only_the_reader_says_right": reader_alone,
        "only_the_second_says_right": second_alone,
        "seed": seed,
        "versions": versions(),
    }
    write_json(out / "result.json", result)
    return result


def sheet(
    items: Sequence[JudgedTwice], columns: int = SHEET_COLUMNS, scale: int = 2
) -> Image.Image:
    """Pictures in a grid with their prompts; the frame is green where the reader says right and red
    where wrong."""
    # px: a picture's side, and a tile of it with its frame and three lines of text
    side, text_height = 48 * scale, 38
    tile_width, tile_height = side + 12, side + 12 + text_height
    num_rows = max(1, -(-len(items) // columns))  # rounded up
    canvas = Image.new("RGB", (columns * tile_width, num_rows * tile_height), "white")
    pen = ImageDraw.Draw(canvas)
    if not items:
        pen.text((tile_width, tile_height // 2), "There is none.", fill="black", font_size=16)
    for i, judged_image in enumerate(items):
        x, y = i % columns * tile_width, i // columns * tile_height
        pen.rectangle(
            (x + 2, y + 2, x + side + 9, y + side + 9),
            outline="green" if judged_image.reader.correct else "red",
            width=3,
        )
        picture = judged_image.image.resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(picture, (x + 6, y + 6))
        prompt_lines = textwrap.wrap(judged_image.spec.prompt.removeprefix("a photo of "), 18)[:3]
        pen.multiline_text(
            (x + 6, y + side + 12), "\n".join(prompt_lines), fill="black", font_size=10, spacing=1
        )
    return canvas
