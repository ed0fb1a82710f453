"""Edit a picture by several instructions, one after another, and put the way there side by side.

python examples/edit_in_turns.py
"""

from pathlib import Path

from PIL import Image

import secondlook

PROMPT = "a photo of a red star and a blue cat"
INSTRUCTIONS = ["make the star green", "remove the cat", "add a white cup"]

editor = secondlook.load("mini-edit")  # draws as well as mini does
image = editor.draw(PROMPT, seed=0).image
steps = [image]
for instruction in INSTRUCTIONS:
    episode = editor.edit(image, instruction, seed=1)
    verdict = episode.verdict
    print(f"{instruction}: {'Yes' if verdict.yes else 'No'} ({verdict.reason})")
    image = episode.image
    steps.append(image)

side = 192
strip = Image.new("RGB", (side * len(steps), side))
for i, step in enumerate(steps):
    strip.paste(step.resize((side, side), Image.Resampling.NEAREST), (side * i, 0))
out = Path("out/edit-in-turns")
out.mkdir(parents=True, exist_ok=True)
strip.save(out / "strip.png")
print(f"written to {out}/strip.png")
