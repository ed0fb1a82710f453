"""Judge the pictures of a folder, and sort them by how sure the model is.

python examples/judge_folder.py FOLDER "what they should show"
"""

import sys
from pathlib import Path

import secondlook
from secondlook.io import EXTENSIONS  # .png, .jpg, …

model = secondlook.load("mini")
if len(sys.argv) > 2:
    folder, prompt = Path(sys.argv[1]), sys.argv[2]
else:  # no folder given: draw one, half of it something else
    folder, prompt = Path("out/judge-folder"), "a photo of a red star"
    folder.mkdir(parents=True, exist_ok=True)
    episodes = model.draw([prompt, "a photo of a blue cat"], n=4, rounds=1)
    for i, episode in enumerate(episodes):
        episode.image.save(folder / f"{i}.png")

paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
if not paths:
    sys.exit(f"{folder} holds no picture ({', '.join(EXTENSIONS)})")
verdicts = model.judge(paths, prompt)

surest_first = sorted(zip(paths, verdicts, strict=True), key=lambda pair: -pair[1].p_yes)
for path, verdict in surest_first:
    print(f"{path.name}: {verdict}")
print(f"{sum(verdict.yes for verdict in verdicts)} of {len(verdicts)} match")
