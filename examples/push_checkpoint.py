"""A checkpoint of one's own to the hub, with a model card made of its run and its scores.

python examples/push_checkpoint.py               # writes what would be uploaded, no more
python examples/push_checkpoint.py me/my-model   # uploads it (log in first: hf auth login)
"""

import subprocess
import sys

import secondlook
from secondlook.hub import push

repo_id = sys.argv[1] if len(sys.argv) > 1 else ""

# A checkpoint of one's own: one step of RL. Its settings end up in the card.
secondlook.train_rl(
    "mini/rl",
    out="out/mine",
    model="mini",
    steps=1,
    rollout={"prompts_per_step": 1, "group_size": 4},
)

# Scores with intervals for the card (in earnest without the two small numbers).
command = "eval mini-geneval --model out/mine/final --rows-per-task 1 --samples 1 --out out/scores"
subprocess.run([sys.executable, "-m", "secondlook", *command.split()], check=True)

where = push(
    "out/mine",
    repo_id or "me/my-model",
    results=["out/scores"],
    dry_run=None if repo_id else "out/pushed",
)
print(f"see {where}")
