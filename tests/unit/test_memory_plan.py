"""Recipes load and say what the paper's table 5 says; the account of memory against what passes
really keep."""

import json
import tomllib
from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.config import changed, load
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate
from secondlook.recipes import FOLDER, find_config, name_of
from secondlook.train.memory_advice import advice, ranks_needed
from secondlook.train.memory_plan import (
    DEFAULT,
    GIB,
    SPARE,
    account,
    highest_moment,
    kept_per_token,
)
from secondlook.train.model_sizes import SIZES, sizes_of
from secondlook.train.optim import freeze, trainable
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.rollout import rollout
from secondlook.train.sft_config import SFTConfig
from secondlook.types import Prompt

RECIPES = sorted(path for size in SIZES for path in FOLDER.glob(f"{size}/*.toml"))
TABLE_5 = {
    "sft": {
        "steps": 50_000,
        "batch_size": 128,
        "optim.warmup_steps": 1000,
        "optim.min_lr": 2e-7,
        "optim.weight_decay": 0.05,
        "optim.max_grad_norm": 1.0,
    },
    "rl": {
        "steps": 3000,
        "optim.warmup_steps": 100,
        "optim.min_lr": 2e-7,
        "optim.convert_step": 400,
        "rollout.group_size": 7,
        "rollout.prompts_per_step": 128,
        "loss.beta": 0.05,
    },
}
RATES = {"sft": {"optim.lr": 2e-5}, "rl": {"optim.lr": 6e-6, "optim.convert_lr": 2e-6}}
EDITING = {
    "sft": {"steps": 40_000, "mix": (1.0, 0.0, 0.0), "good_edit": 0.7},
    "rl": {
        "steps": 2200,
        "optim.convert_step": 300,
        "optim.lr": 1e-5,
        "optim.convert_lr": 2e-6,
        "rollout.group_size": 8,
        "rollout.rounds": 1,
    },
}


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_say_what_table_5_says(path):
    name = path.stem.removeprefix("edit_")
    stage = "sft" if name.startswith("sft") else "rl"
    job = load(SFTConfig if stage == "sft" else RLConfig, path, [])
    wanted = (
        TABLE_5[stage]
        | ({} if job.lora_rank else RATES[stage])
        | (EDITING[stage] if name != path.stem else {})
    )
    assert {name: attrgetter(name)(job) for name in wanted} == wanted
    if stage == "rl":
        assert job.algorithm == name.split("_")[0]
        assert all(job.rollout.prompts_per_step % ranks == 0 for ranks in (8, 16, 32, 64))
    size = path.parent.name
    changes, enough = advice(sizes_of(size), job, 8, 80 * GIB)
    assert enough and not changes, "recipes fit on eight GPUs of 80 GB"


def test_the_planner_speaks_of_the_7b_recipe():
    recipe = tomllib.loads(find_config("7b/grpo").read_text())
    for section, settings in DEFAULT.items():
        assert recipe[section].items() >= settings.items()


def test_sizes_of_the_real_models():
    billions = []
    for sizes in map(sizes_of, SIZES):
        billions.append(round((sizes.trained_params + sizes.frozen_params) / 1e9, 2))
    assert billions == [2.08, 7.41]
    mini = Janus.load(locate("mini-base"))
    freeze(mini)
    mini_sizes = sizes_of("mini-base")
    assert mini_sizes.trained_params == sum(p.numel() for p in trainable(mini).values())
    adapters = freeze(mini, lora_rank=3)
    learned = sum(p.numel() for p in trainable(mini).values())
    assert adapters and mini_sizes.rank_1_params * 3 == learned


def test_what_a_pass_keeps_for_the_gradient():
    """Bytes that autograd holds after scoring turns, against the account."""
    janus = Janus.load(locate("mini-base"))
    freeze(janus)
    engine, sizes = Engine(janus), sizes_of("mini-base")
    prompts = [Prompt("a photo of a cat below a cup")]
    episodes = rollout(engine, prompts, 8, 1, [0], SamplingConfig(3.0, 1.0, 0, 0))
    turns = [turn for episode in episodes for turn in episode.turns if turn.kind == "draw"]
    kept: dict[int, int] = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    own = {p.untyped_storage().data_ptr() for p in janus.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logp = sampling.score(janus, engine.template, turns)
    prompt = sum(len(s.ids) for t in turns for s in t.segments)
    tokens = 2 * (prompt + sum(len(t.tokens) for t in turns))
    foretold = tokens * kept_per_token(sizes, "none", 4, False) * sizes.num_layers
    assert logp.requires_grad and 0.85 < sum(kept.values()) / foretold < 1.15


def test_the_account_moves_as_it_should():
    sizes, config = sizes_of("7b"), RLConfig("7b", **DEFAULT)
    whole = account(sizes, config, 8)
    assert account(sizes, config, 16).peak < whole.peak < account(sizes, config, 4).peak
    optimizer = whole.update["optimizer"]
    rereading = account(replace(sizes, judge_rereads=True), config, 8)
    assert rereading.peak > whole.peak
    lora = account(sizes, changed(config, {"lora_rank": 64}), 8)
    assert lora.update["optimizer"] < optimizer / 20
    offloaded = account(sizes, changed(config, {"runtime.reference": "offload"}), 8)
    assert "reference" not in offloaded.update
    two_copies = account(sizes, changed(config, {"runtime.dp_shard_degree": 4}), 8)
    assert two_copies.update["optimizer"] == 2 * optimizer
    ppo = changed(config, {"algorithm": "ppo"})
    groups = ppo.rollout.prompts_per_step  # as many again begin with wrong images
    repairing = changed(ppo, {"rollout.repair_groups": groups})
    states = [
        highest_moment(sizes, each, 8, False).get("states for the value head", 0.0)
        for each in (ppo, repairing)
    ]
    assert states[1] == 2 * states[0] > 0
    for memory in (24, 48, 80, 141):
        changes, enough = advice(sizes, config, 8, memory * GIB)
        pairs = [change.split(" = ") for change in changes]
        advised = changed(config, {name: json.loads(value) for name, value in pairs})
        assert enough == (account(sizes, advised, 8).peak + SPARE <= memory * GIB)
    ranks = ranks_needed(sizes, config, 60 * GIB)
    assert ranks is None or account(sizes, config, ranks).peak + SPARE <= 60 * GIB


def test_from_the_command_line(tmp_path):
    run = CliRunner().invoke(
        app, ["plan", "--model", "7b", "--gpus", "8", "--json", str(tmp_path / "plan.json")]
    )
    assert run.exit_code == 0 and "fits: " in run.output and "key-value cache" in run.output
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is True
    small = CliRunner().invoke(app, ["plan", "--model", "7b", "--gpus", "1", "--memory", "40"])
    assert "does not fit" in small.output and "lora_rank = 64" in small.output
