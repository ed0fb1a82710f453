"""Supervised fine-tuning on pictures of one's own, with what a person said of them.

Stage 1 reads a JSONL file: each line a prompt with its pictures, each picture with a score between
0 and 1 and a reason. From 0.8 on a picture is learned to be drawn; one from 0.7 on and one below
0.5 are judged side by side.
"""

import json
from pathlib import Path

import secondlook

# Pictures "of one's own": the miniature's, right ones and wrong ones of each prompt.
model = secondlook.load("mini")
folder = Path("out/own-pictures")
folder.mkdir(parents=True, exist_ok=True)
objects = ["star", "cup", "cat", "key", "heart", "moon"]
rows = []
for number, name in enumerate(objects):
    other = objects[number - 1]
    right = model.draw(f"a photo of a red {name}", n=2, rounds=1, seed=100 * number)
    wrong = model.draw(f"a photo of a red {other}", n=2, rounds=1, seed=100 * number + 50)
    pictures = []
    for episode in right + wrong:
        good = episode in right
        path = f"{number}-{len(pictures)}.png"
        episode.image.save(folder / path)
        reason = f"There is a red {name}." if good else f"There is no red {name}."
        pictures.append(
            {"img_path": path, "prob": 0.95 if good else 0.1, "reason": reason, "state": good}
        )
    rows.append({"promptid": number, "prompt": f"a photo of a red {name}", "data": pictures})
data = folder / "pictures.jsonl"
data.write_text("".join(json.dumps(row) + "\n" for row in rows))

# A few steps, to see that it works; hundreds, to learn something.
tuned = secondlook.train_sft(
    "mini/sft",  # a recipe that comes along; the rest overrules it
    out="out/own-sft",
    model="mini-base",
    data=str(data),
    steps=3,
    batch_size=12,
)
episode = tuned.draw("a photo of a red star", seed=0)
print(episode.verdict.yes, episode.verdict.reason)
episode.save("out/own-sft-star")
