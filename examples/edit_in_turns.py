"""Edit a picture by several instructions, one after another, and show the way there.

What is added needs a place; docs/miniature.md lists the instructions that the model was taught. Its
reasons are often false where its picture and its verdict are right.

python examples/edit_in_turns.py
"""

from pathlib import Path

from PIL import Image

import secondlook

PROMPT = "a photo of a red star and a blue cat"
INSTRUCTIONS = ["make the star green", "remove the cat", "add a white cup at the bottom right"]

editor = secondlook.load("mini-edit")  # draws as well as mini does
first = editor.draw(PROMPT, seed=0).image
edits = editor.edit(first, INSTRUCTIONS, seed=1)  # each on what the one before has made
for edit in edits:
    print(f"{edit.prompt.text}: {edit.verdict}")
steps = [first, *(edit.image for edit in edits)]

side = 192
strip = Image.new("RGB", (side * len(steps), side))
for i, step in enumerate(steps):
    strip.paste(step.resize((side, side), Image.Resampling.NEAREST), (side * i, 0))
out = Path("out/edit-in-turns")
out.mkdir(parents=True, exist_ok=True)
strip.save(out / "strip.png")
print(f"written to {out}/strip.png")
