"""Draws the picture of the first page: two episodes of the miniature, each image with its verdict.

python docs/make_pictures.py        # writes docs/episodes.png
"""

from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

import secondlook

EPISODES = [("a photo of a cat below a cup", 22), ("a photo of four stars", 11)]
SIDE, GAP, TOP, BELOW = 192, 24, 44, 56
COLUMNS = 5  # three images of the first episode, two of the second


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def main() -> None:
    model = secondlook.load("mini", device="cpu")
    width = COLUMNS * (SIDE + GAP) + 3 * GAP
    canvas = Image.new("RGB", (width, TOP + SIDE + BELOW + GAP), "white")
    pen = ImageDraw.Draw(canvas)
    left = GAP
    for prompt, seed in EPISODES:
        episode = model.draw(prompt, rounds=3, seed=seed)
        pen.text((left, 10), f"“{prompt}”", "black", font(17))
        for round_ in episode.rounds:
            color = "#1a7f37" if round_.yes else "#cf222e"
            image = round_.image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            pen.rectangle((left - 4, TOP - 4, left + SIDE + 3, TOP + SIDE + 3), fill=color)
            canvas.paste(image, (left, TOP))
            verdict = f"{'Yes' if round_.yes else 'No'}, p(yes) {round_.p_yes:.2f}"
            pen.text((left, TOP + SIDE + 8), verdict, color, font(14))
            pen.text((left, TOP + SIDE + 28), round_.reason, "black", font(11))
            left += SIDE + GAP
        left += GAP
    canvas.save(Path(__file__).parent / "episodes.png", optimize=True)


if __name__ == "__main__":
    main()
