"""A checkpoint of one's own to the hub, with a model card made of its run.

python examples/push_checkpoint.py               # writes what would be uploaded, no more
python examples/push_checkpoint.py me/my-model   # uploads it (log in first: hf auth login)
"""

import subprocess
import sys

import secondlook

# A checkpoint of one's own: one step of RL. Its settings end up in the card.
secondlook.train_rl(
    "mini/rl",
    out="out/mine",
    model="mini",
    steps=1,
    rollout={"prompts_per_step": 2, "group_size": 4},
)

# Scores with intervals for the card (more rows and samples in earnest).
measure = ["eval", "mini-geneval", "--model", "out/mine/final", "--out", "out/mine-geneval"]
few = ["--rows-per-task", "1", "--samples", "1"]
subprocess.run([sys.executable, "-m", "secondlook.cli", *measure, *few], check=True)

name = sys.argv[1] if len(sys.argv) > 1 else ""
push = [
    "push",
    "out/mine/final",
    name or "me/my-model",
    "--results",
    "out/mine-geneval/result.json",
]
dry_run = [] if name else ["--dry-run", "out/pushed"]
subprocess.run([sys.executable, "-m", "secondlook.cli", *push, *dry_run], check=True)
