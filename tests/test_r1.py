"""The recipes: each is trained for two steps on a tiny model, and the script that runs all of them goes through."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from secondlook import config
from secondlook.bench import fetch
from secondlook.data.build import BuildConfig
from secondlook.files import read_text

ROOT = Path(__file__).parents[1]


def test_what_the_data_recipes_name_is_fetched_or_made():
    """Files under out/r1 are made by runs/r1.sh or fetched; the recipes' page speaks of each."""
    page, script = read_text(ROOT / "recipes" / "README.md"), read_text(ROOT / "runs" / "r1.sh")
    made = {"sft/final", "grpo/final", "edit_sft/final", "data", "edit_data", "data/prompts.jsonl", "canaries/canaries.jsonl"}
    made |= {"edit_canaries/canaries.jsonl", "edits/edits.jsonl", "files/seeds.txt"}
    made |= {f"files/{name}" for name in fetch.FILES}
    for recipe in (ROOT / "recipes").glob("*.toml"):
        for name in re.findall(r'"out/r1/([^"]+)"', read_text(recipe)):
            assert name in made or name.endswith(".sqlite"), f"{recipe.name} names {name}"
    for name in ("canaries/canaries.jsonl", "edits/edits.jsonl", "data/prompts.jsonl", "seeds.txt", "vllm serve"):
        assert name in page
    for stage in ("data fetch", "data canaries", "data edits", "train sft", "train rl", "bench public", "bench table", "plan"):
        assert stage in script.replace("train rl ", "train rl ") or stage in page
    for name in ("data", "edit_data"):
        build = config.load(BuildConfig, ROOT / "recipes" / f"{name}.toml", [])
        assert sum(g.images for g in build.generators) == (18 if name == "data" else 2)


@pytest.mark.slow
def test_the_script_goes_from_nothing_to_the_table(tmp_path):
    """`TINY=1 runs/r1.sh`, whole; then again, when nothing is drawn, trained or measured anew."""
    settings = {"TINY": "1", "OUT": str(tmp_path / "r1"), "PORT": "8771", "OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / "runs" / "r1.sh"], env=os.environ | settings | {"PATH": path}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = read_text(tmp_path / "r1" / "report" / "table.md")
    for name in ("base", "sft", "grpo", "edit-sft", "edit-grpo", "DPG-Bench", "PIE-Bench", "grpo over sft"):
        assert name in table
    assert (tmp_path / "r1" / "canaries" / "canaries.html").exists()
