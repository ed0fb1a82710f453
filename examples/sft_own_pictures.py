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
    prompt, other_prompt = f"a photo of a red {name}", f"a photo of a red {objects[number - 1]}"
    right_ones = model.draw(prompt, n=2, rounds=1, seed=100 * number)
    wrong_ones = model.draw(other_prompt, n=2, rounds=1, seed=100 * number + 50)
    pictures = []
    for i, episode in enumerate(right_ones + wrong_ones):
        is_right = i < len(right_ones)
        image_name = f"{number}-{i}.png"
        episode.image.save(folder / image_name)
        reason = f"There is a red {name}." if is_right else f"There is no red {name}."
        score = 0.95 if is_right else 0.1
        pictures.append(
            {"img_path": image_name, "prob": score, "reason": reason, "state": is_right}
        )
    rows.append({"promptid": number, "prompt": prompt, "data": pictures})
data_path = folder / "pictures.jsonl"
data_path.write_text("".join(json.dumps(row) + "\n" for row in rows))

# A few steps, to see that it works; hundreds, to learn something.
tuned = secondlook.train_sft(
    "mini/sft",  # a shipped recipe; the rest overrules it
    out="out/own-sft",
    model="mini-base",
    data=str(data_path),
    steps=2,
    batch_size=6,
)
episode = tuned.draw("a photo of a red star", seed=0)
print(episode.verdict.yes, episode.verdict.reason)
episode.save("out/own-sft-star")
