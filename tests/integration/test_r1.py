"""The recipes: each is trained for two steps on a tiny model, and the script that runs all of them
goes through."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secondlook import config
from secondlook.data.build_config import BuildConfig
from secondlook.evals import fetch
from secondlook.io import read_text, stored_rows, write_text
from secondlook.recipes import FOLDER as RECIPES
from secondlook.recipes import name_of
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import train_rl
from secondlook.train.sft import SFTConfig, train_sft

ROOT = Path(__file__).parents[2]


def test_what_the_data_recipes_name_is_fetched_or_made():
    """Files under out/r1 are made by scripts/r1.sh or fetched; the recipes' page speaks of each."""
    page, script = read_text(RECIPES / "README.md"), read_text(ROOT / "scripts" / "r1.sh")
    made = {
        "sft/final",
        "grpo/final",
        "edit_sft/final",
        "data",
        "edit_data",
        "data/prompts.jsonl",
        "sanity_pairs/sanity_pairs.jsonl",
    }
    made |= {"edit_sanity_pairs/sanity_pairs.jsonl", "edits/edits.jsonl", "files/seeds.txt"}
    made |= {f"files/{name}" for name in fetch.FILES}
    for recipe in [*RECIPES.glob("*.toml"), *RECIPES.glob("[17]b/*.toml")]:
        for name in re.findall(r'"out/r1/([^"]+)"', read_text(recipe)):
            assert name in made or name.endswith(".sqlite"), f"{recipe.name} names {name}"
    for name in (
        "sanity_pairs/sanity_pairs.jsonl",
        "edits/edits.jsonl",
        "data/prompts.jsonl",
        "seeds.txt",
        "vllm serve",
    ):
        assert name in page
    for command in (
        "data fetch",
        "data sanity-pairs",
        "data edits",
        "train sft",
        "train rl",
        "ranks.sh eval",
        "eval table",
        "plan",
    ):
        assert command in script
    for name in ("data", "edit_data"):
        build = config.load(BuildConfig, RECIPES / f"{name}.toml", [])
        assert sum(g.images for g in build.generators) == (18 if name == "data" else 2)


@pytest.fixture(scope="module")
def start(janus, tmp_path_factory) -> Path:
    """A tiny model of random weights, and pictures with scores, of prompts and of edits."""
    folder = tmp_path_factory.mktemp("start")
    janus.save(folder / "model")
    rng = np.random.default_rng(0)
    for k in range(8):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    drawn, edited = [], []
    for i in range(3):
        pictures = [
            {"img_path": f"{k}.png", "prob": 0.95 if k % 2 else 0.1, "reason": "there is a cat."}
            for k in range(i, i + 4)
        ]
        drawn.append({"promptid": i, "prompt": f"a photo of {i} cats", "data": pictures})
        edits = [p | {"following": p["prob"], "preserving": 0.9} for p in pictures]
        edited.append({"promptid": i, "prompt": f"make it {i}", "source": "7.png", "data": edits})
    write_text(folder / "drawn.jsonl", "".join(json.dumps(line) + "\n" for line in drawn))
    write_text(folder / "edited.jsonl", "".join(json.dumps(line) + "\n" for line in edited))
    return folder


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("[17]b/*.toml")), ids=name_of)
def test_every_recipe_trains_two_steps(recipe, start, tmp_path):
    """With its own settings, but for sizes, places and the judge."""
    small = {
        "model": start / "model",
        "steps": 2,
        "optim.warmup_steps": 0,
        "runtime.device": "cpu",
        "runtime.dtype": "float32",
        "runtime.threads": 1,
        "runtime.log_every": 1,
    }
    if "sft" in recipe.stem:
        small |= {
            "data": start / ("edited.jsonl" if "edit" in recipe.stem else "drawn.jsonl"),
            "batch_size": 6,
        }
        job, kind = train_sft, SFTConfig
    else:
        small |= {
            "prompts": "mini",
            "sanity_pairs": "",
            "rewards": [],
            "rollout.prompts_per_step": 2,
            "rollout.group_size": 2,
            "ppo.value_warmup_steps": 1,
            "optim.convert_step": 0,
            "reward_checks.max_flat_steps": 9,
        }
        small |= {"prompt_options": {"kinds": {"recolour": 1.0}}} if "edit" in recipe.stem else {}
        job, kind = train_rl, RLConfig
    settings = [
        f"{name}={json.dumps(str(v) if isinstance(v, Path) else v)}"
        for name, v in small.items()
        if name != "prompt_options"
    ]
    settings += ["prompt_options={kinds = {recolour = 1.0}}"] if "prompt_options" in small else []
    job(config.load(kind, recipe, settings), tmp_path)
    rows = stored_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and all(
        np.isfinite(v) for row in rows for v in row.values()
    )
    assert (tmp_path / "final" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_script_goes_from_nothing_to_the_table(tmp_path):
    """`TINY=1 scripts/r1.sh`, whole; then again, when nothing is drawn, trained or measured."""
    settings = {"TINY": "1", "OUT": str(tmp_path / "r1"), "PORT": "8771", "OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / "scripts" / "r1.sh"],
        env=os.environ | settings | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = read_text(tmp_path / "r1" / "report" / "table.md")
    for name in (
        "base",
        "sft",
        "grpo",
        "edit-sft",
        "edit-grpo",
        "DPG-Bench",
        "PIE-Bench",
        "grpo over sft",
    ):
        assert name in table
    assert (tmp_path / "r1" / "sanity_pairs" / "sanity_pairs.html").exists()


def commands_of(tmp_path, **settings: str) -> list[str]:
    """What the script would run: every program is replaced by one that prints its arguments."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("secondlook", "python", "torchrun"):
        program = programs / name
        program.write_text(
            f'#!/bin/sh\nfor arg in {name} "$@"; do printf "%s\\037" "$arg"; done\necho\n'
        )
        program.chmod(0o755)
    script = tmp_path / "repository"
    shutil.copytree(ROOT / "scripts", script / "scripts")
    shutil.copytree(RECIPES, script / "src" / "secondlook" / "recipes")
    environment = {k: v for k, v in os.environ.items() if k not in ("PORT", "TINY")} | settings
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    done = subprocess.run(
        [script / "scripts" / "r1.sh"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [line.replace("\037", " ") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("settings", [{}, {"TINY": "1"}], ids=["full size", "tiny"])
def test_every_stage_is_given_its_files_and_servers(tmp_path, settings):
    out = tmp_path / "out"
    addresses = {"JUDGE_URL": "http://judge:1/v1", "WRITER_URL": "http://writer:1/v1"}
    lines = commands_of(tmp_path, OUT=str(out), **addresses, **settings)
    [drawing] = [line for line in lines if "data build --config data " in line]
    [editing] = [line for line in lines if "data build --config edit_data " in line]
    assert f"prompts={out}/edits/edits.jsonl" in editing and "seeds.txt" not in editing
    assert "seeds.txt" in drawing and "expand=" in drawing and "edits.jsonl" not in drawing
    trained = [line for line in lines if " train rl " in line]
    assert len(trained) == 2
    for line in (drawing, editing, *trained):
        assert "rewards=[{" in line and ("http://judge:1/v1" in line or "TINY" in settings)
