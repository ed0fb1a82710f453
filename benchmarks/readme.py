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
WATCHED = ("first", "final", "agreement", "yes_when_right", "no_when_wrong", "kl")


def picture(src: str) -> Image.Image:
    """The picture of a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))).convert("RGB")


def draw_strip(canvas: Image.Image, strip: dict, x: int, y: int) -> None:
    """One episode: its prompt, then its rounds with verdict and reason; the frame is the truth,
    green or red."""
    pen = ImageDraw.Draw(canvas)
    pen.text((x, y), strip["prompt"].removeprefix("a photo of "), fill="black", font_size=14)
    for i, r in enumerate(strip["rounds"]):
        left, top = x + i * WIDTH, y + 22
        image = picture(r["src"]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        pen.rectangle(
            (left, top, left + SIDE + 7, top + SIDE + 7),
            outline="green" if r["right"] else "red",
            width=3,
        )
        canvas.paste(image, (left + 4, top + 4))
        says = "\n".join(textwrap.wrap(f"{'Yes' if r['yes'] else 'No'}: {r['reason']}", 28)[:3])
        pen.multiline_text((left, top + SIDE + 10), says, fill="black", font_size=12, spacing=2)


def gallery(folder: Path, each: int) -> Image.Image:
    """``each`` episodes of every group of ``folder``/gallery.json that has any, but for those that
    were right at once."""
    groups = json.loads((folder / "gallery.json").read_text())
    columns = [
        (name, strips[:each])
        for name, strips in groups.items()
        if strips and name != "Right at once"
    ]
    widths = [max(len(s["rounds"]) for s in strips) * WIDTH + 30 for _, strips in columns]
    canvas = Image.new("RGB", (sum(widths), 40 + each * HEIGHT), "white")
    pen, x = ImageDraw.Draw(canvas), 12
    for (name, strips), width in zip(columns, widths, strict=True):
        pen.text((x, 8), name, fill="black", font_size=18)
        for k, strip in enumerate(strips):
            draw_strip(canvas, strip, x, 40 + k * HEIGHT)
        x += width
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
