"""Draw a prompt several times, and look at what the model says of each image.

python examples/draw_and_look.py "a photo of four stars"
"""

import sys
from pathlib import Path

import secondlook

prompt = sys.argv[1] if len(sys.argv) > 1 else "a photo of a cat below a cup"
model = secondlook.load("mini")
episodes = model.draw(prompt, n=8, rounds=3, seed=20)

for episode in episodes:
    print(f"seed {episode.seed}")
    for round_ in episode.rounds:
        print(f"  {round_.verdict}")

redrawn = [episode for episode in episodes if len(episode.rounds) > 1]
print(f"{len(redrawn)} of {len(episodes)} were drawn again")

out = Path("out/draw-and-look")
for episode in episodes:
    episode.save(out / str(episode.seed))
print(f"open {out}/{episodes[0].seed}/episode.html")
