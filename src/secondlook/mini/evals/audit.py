"""Is the reader that rewards and scores fooled? Contact sheets of a benchmark's images for the eye,
and a second detector.

From what ``bench geneval`` wrote: every image is decoded from its codes again, scored by the reader
(`world.read`) and judged by an independent detector (`world.match`). ``highest.png`` shows the
images with the highest scores, ``random.png`` a random choice, ``disagreements.png`` those on which
the detectors differ.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.evals.intervals import Sample, bootstrap, by_prompt, written_by
from secondlook.io import read_json, versions, write_image, write_json
from secondlook.mini.world import second_detector
from secondlook.mini.world.language import Spec, parse
from secondlook.mini.world.reader import Verdict, judge

Shown = tuple[Spec, Image.Image, Verdict, bool]
"""A row, an image, the reader's verdict, and whether the second detector finds it right."""


def read_codes(folder: Path) -> tuple[str, list[tuple[str, tuple[int, ...]]]]:
    """The model and every image (prompt, codes) of a folder that ``bench geneval`` wrote. Raises
    InputError."""
    path = folder / "episodes.json"
    with written_by("bench geneval", folder / "result.json"):
        model = read_json(folder / "result.json", dict)["settings"]["model"]
        if not isinstance(model, str):
            raise TypeError("its model is no name")
    with written_by("bench geneval", path):
        drawn = [
            (e["prompt"], tuple(r["codes"])) for e in read_json(path, list) for r in e["rounds"]
        ]
        for prompt, codes in drawn:
            parse(prompt)
            if not codes or any(type(c) is not int or c < 0 for c in codes):
                raise ValueError("an image's codes are not numbers from 0 on")
    return model, drawn


def painted(engine: Engine, drawn: list[tuple[str, tuple[int, ...]]]) -> list[Image.Image]:
    """Images of their codes. Raises InputError where those are not the model's."""
    n, words = engine.janus.n_codes, engine.janus.net.config.vq_config.num_embeddings
    for prompt, codes in drawn:
        if len(codes) != n or max(codes) >= words:
            raise InputError(
                f"folder: the codes of {prompt!r} are not {n} numbers below {words}, as this "
                "model draws"
            )
    return engine.pictures([codes for _, codes in drawn])


def run(engine: Engine, drawn: list[tuple[str, tuple[int, ...]]]) -> list[Shown]:
    """Decode every image and ask both detectors."""
    shown = []
    for (prompt, _), image in zip(drawn, painted(engine, drawn), strict=True):
        spec = parse(prompt)
        shown.append((spec, image, judge(spec, image), second_detector.agrees(spec, image)))
    return shown


def write(out: Path, shown: list[Shown], n: int = 100, seed: int = 0) -> dict:
    """highest.png, random.png, disagreements.png and, last, result.json; returns the result."""
    mixed = [shown[i] for i in np.random.default_rng(seed).permutation(len(shown))]
    best = sorted(mixed, key=lambda s: -s[2].score)[
        :n
    ]  # many have the highest score: a random choice of them
    differ = [s for s in shown if s[2].correct != s[3]]
    for name, items in (("highest", best), ("random", mixed[:n]), ("disagreements", differ[:n])):
        write_image(out / f"{name}.png", sheet(items))
    same = [
        Sample("same", spec.prompt, float(verdict.correct == other))
        for spec, _, verdict, other in shown
    ]
    result = {
        "images": len(shown),
        "agreement": bootstrap(by_prompt(same), lambda v: float(v["same"].mean())),
        "only_the_reader_says_right": sum(s[2].correct and not s[3] for s in shown),
        "only_the_second_says_right": sum(s[3] and not s[2].correct for s in shown),
        "seed": seed,
        "versions": versions(),
    }
    write_json(out / "result.json", result)
    return result


def sheet(items: list[Shown], columns: int = 10, scale: int = 2) -> Image.Image:
    """Pictures in a grid with their prompts; the frame is green where the reader says right and red
    where wrong."""
    side, text = 48 * scale, 38
    width, height = side + 12, side + 12 + text
    rows = max(1, -(-len(items) // columns))
    canvas = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(canvas)
    if not items:
        pen.text((width, height // 2), "There is none.", fill="black", font_size=16)
    for i, (spec, image, verdict, _) in enumerate(items):
        x, y = i % columns * width, i // columns * height
        pen.rectangle(
            (x + 2, y + 2, x + side + 9, y + side + 9),
            outline="green" if verdict.correct else "red",
            width=3,
        )
        canvas.paste(image.resize((side, side), Image.Resampling.NEAREST), (x + 6, y + 6))
        words = textwrap.wrap(spec.prompt.removeprefix("a photo of "), 18)[:3]
        pen.multiline_text(
            (x + 6, y + side + 12), "\n".join(words), fill="black", font_size=10, spacing=1
        )
    return canvas
