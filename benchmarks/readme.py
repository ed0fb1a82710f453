"""The README's pictures of a run of scripts/mini.sh: a gallery of episodes in the order they were
drawn, what RL did step by step, and quality over cost.

python benchmarks/readme.py out/mini [--out docs] [--each 4]
"""

import argparse
import base64
import io
import json
import shutil
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from secondlook.io import write_image
from secondlook.report import curves

SIDE, WIDTH, HEIGHT = 144, 190, 234
"""Pixels: of a picture, and of a round with its frame and words."""
WATCHED = ("first", "final", "agreement", "yes_when_right", "no_when_wrong", "kl")


def picture(data_url: str) -> Image.Image:
    """The picture of a data URL."""
    encoded = data_url.partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def draw_strip(canvas: Image.Image, strip: dict, x: int, y: int) -> None:
    """One episode: its prompt, then its rounds with verdict and reason; the frame is the truth,
    green or red."""
    pen = ImageDraw.Draw(canvas)
    pen.text((x, y), strip["prompt"].removeprefix("a photo of "), fill="black", font_size=14)
    for i, each in enumerate(strip["rounds"]):
        left, top = x + i * WIDTH, y + 22
        image = picture(each["src"]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        frame = (left, top, left + SIDE + 7, top + SIDE + 7)
        pen.rectangle(frame, outline="green" if each["right"] else "red", width=3)
        canvas.paste(image, (left + 4, top + 4))
        verdict = f"{'Yes' if each['yes'] else 'No'}: {each['reason']}"
        text = "\n".join(textwrap.wrap(verdict, 28)[:3])  # three lines have room
        pen.multiline_text((left, top + SIDE + 10), text, fill="black", font_size=12, spacing=2)


def gallery(folder: Path, each: int) -> Image.Image:
    """``each`` episodes of every group of ``folder``/gallery.json that has any, but for those that
    were right at once."""
    groups = json.loads((folder / "gallery.json").read_text())
    shown_strips: dict[str, list[dict]] = {}
    column_widths: dict[str, int] = {}
    for name, strips in groups.items():
        if strips and name != "Right at once":
            shown_strips[name] = strips[:each]
            most_rounds = max(len(strip["rounds"]) for strip in strips[:each])
            column_widths[name] = most_rounds * WIDTH + 30
    canvas = Image.new("RGB", (sum(column_widths.values()), 40 + each * HEIGHT), "white")
    pen, x = ImageDraw.Draw(canvas), 12
    for name, strips in shown_strips.items():
        pen.text((x, 8), name, fill="black", font_size=18)
        for row, strip in enumerate(strips):
            draw_strip(canvas, strip, x, 40 + row * HEIGHT)
        x += column_widths[name]
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--each", type=int, default=4, help="episodes of each group")
    args = parser.parse_args()
    write_image(args.out / "mini_gallery.png", gallery(args.run / "rl" / "geneval", args.each))
    curves(args.run / "rl", args.out / "mini_rl.png", WATCHED)
    shutil.copy(args.run / "report" / "curves.png", args.out / "mini_cost.png")


if __name__ == "__main__":
    main()
