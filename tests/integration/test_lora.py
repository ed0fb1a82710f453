"""Adapters: what is trained, what is merged and exported, and the reference that is the same model
without them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secondlook.config import parse
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.errors import InputError
from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate
from secondlook.train.distributed import ProcessGroup
from secondlook.train.optim import freeze, trainable
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import train_rl
from secondlook.train.rl.rollout import rollout
from secondlook.train.sft_config import SFTConfig
from secondlook.train.sharding import ShardedModel
from secondlook.types import Prompt

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def plain():
    return Janus.load(locate("mini-base"), dtype=torch.float64)


@pytest.fixture(scope="module")
def turns(plain):
    sampling = SamplingConfig(3.0, 1.0, 0, 0)
    prompts = [Prompt("a photo of a cat below a cup")]
    episodes = rollout(Engine(plain), prompts, 3, 2, [0], sampling)
    return [turn for episode in episodes for turn in episode.turns]


def scores(janus: Janus, turns) -> torch.Tensor:
    template = Engine(janus).template
    with torch.no_grad():
        return torch.cat([sampling.score(janus, template, [t]) for t in turns])


def moved() -> tuple[Janus, ShardedModel]:
    """A model with adapters that are not 0."""
    janus = Janus.load(locate("mini-base"), dtype=torch.float64)
    adapters = freeze(janus, lora_rank=4, lora_alpha=12, seed=1)
    torch.manual_seed(2)
    for name, p in trainable(janus).items():
        assert "lora_" in name
        torch.nn.init.normal_(p, std=0.05)
    return janus, ShardedModel(janus, ProcessGroup(), adapters=adapters)


def test_merged_and_exported_they_say_the_same(plain, turns, tmp_path):
    janus, shards = moved()
    with_adapters = scores(janus, turns)
    assert (with_adapters - scores(plain, turns)).abs().max() > 0.1
    shards.save(tmp_path / "final")
    merged = Janus.load(tmp_path / "final", dtype=torch.float64)
    torch.testing.assert_close(scores(merged, turns), with_adapters, rtol=0, atol=1e-5)
    base = Janus.load(locate("mini-base"), dtype=torch.float64)
    base.net = peft.PeftModel.from_pretrained(
        base.net, str(tmp_path / "final" / "adapter")
    ).base_model.model
    torch.testing.assert_close(scores(base, turns), with_adapters, rtol=0, atol=1e-5)
    a, b = (
        load_file(p / "model.safetensors") for p in (tmp_path / "final", Path(locate("mini-base")))
    )
    changed = {n for n in b if (a[n].float() - b[n].float()).abs().max() > 1e-5}
    assert changed and all(
        n.startswith(("model.language_model.layers.", "model.generation_")) for n in changed
    )
    assert "model.generation_head.vision_head.weight" not in changed


def test_the_reference_is_the_model_without_them(plain, turns):
    janus, shards = moved()
    before = scores(janus, turns)
    with shards.adapters.off():
        assert torch.equal(scores(janus, turns), scores(plain, turns))
    assert torch.equal(scores(janus, turns), before) and all(
        p.requires_grad for p in trainable(janus).values()
    )


def test_training_moves_adapters_alone_and_samples_with_them(tmp_path):
    config = RLConfig(
        model="mini-base",
        steps=2,
        lora_rank=4,
        rollout={"prompts_per_step": 2, "group_size": 3, "rounds": 2},
        advantage={"credit": "expected"},
        loss={"beta": 0.1},
        optim={"lr": 3e-2, "min_lr": 3e-2, "warmup_steps": 0, "epochs": 1},
        runtime={"device": "cpu", "log_every": 1},
        reward_checks={"max_flat_steps": 9},
    )
    train_rl(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(r["sampler_gap"] < 1e-4 for r in rows), (
        "the engine draws with the adapters that were trained"
    )
    assert rows[1]["kl"] > rows[0]["kl"] >= 0
    said = json.loads((tmp_path / "final" / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "mini-base"
    with pytest.raises(InputError, match="is a LoRA adapter of 'mini-base', not a checkpoint"):
        Janus.load(tmp_path / "final" / "adapter")


def test_a_reference_in_the_cpus_memory_is_the_same(tmp_path):
    for where in ("copy", "offload"):
        config = RLConfig(
            model="mini-base",
            steps=1,
            rollout={"prompts_per_step": 1, "group_size": 3, "rounds": 1},
            advantage={"credit": "segment"},
            runtime={"device": "cpu", "log_every": 1, "reference": where},
            reward_checks={"max_flat_steps": 9},
        )
        train_rl(config, tmp_path / where)
    a, b = (
        (tmp_path / w / "metrics.jsonl").read_text().split('"kl"')[1].split('"lr"')[0]
        for w in ("copy", "offload")
    )
    assert a == b


def test_settings_that_do_not_go_together_are_named():
    with pytest.raises(InputError, match=r"muon_lr_ratio is 3\.0; adapters"):
        parse(
            SFTConfig,
            {"model": "mini", "data": "d", "optim": {"muon_lr_ratio": 3.0}, "lora_rank": 4},
        )


def test_small_changes_and_frozen_parts_survive_training_in_bfloat16(tmp_path):
    """What was trained is written in float32: the sum of base and adapter is not rounded to
    bfloat16 again, and an encoder that bfloat16 cannot hold is written as it was read."""
    janus = Janus.load(locate("mini-base"))
    with torch.no_grad():
        for p in janus.net.model.vision_model.parameters():
            p.mul_(1 + 2**-12)
    read = {
        n: p.detach().clone()
        for n, p in janus.net.named_parameters()
        if n.startswith(("model.vision", "model.vq"))
    }
    adapters = freeze(janus, lora_rank=4, lora_alpha=4, seed=1)
    try:
        shards = ShardedModel(janus, ProcessGroup(), "bfloat16", adapters=adapters)
        base = {n: w.clone() for n, w in shards.full_state_dict().items()}
        with torch.no_grad():
            for p in trainable(janus).values():
                p.to_local().normal_(std=2e-3)
        shards.save(tmp_path / "final")
    finally:
        torch.distributed.destroy_process_group()
    written = load_file(tmp_path / "final" / "model.safetensors")
    assert {w.dtype for w in written.values() if w.is_floating_point()} == {torch.float32}
    assert all(torch.equal(written[n], w) for n, w in read.items())
    weights = shards.adapters.merged(base)
    name = next(n for n in weights if n.endswith("layers.0.mlp.up_proj.weight"))
    assert torch.equal(weights[name], base[name.replace("weight", "base_layer.weight")].float()), (
        "adapters are 0 at first"
    )
    delta = written[name] - weights[name]
    assert 0 < delta.abs().max() < 2**-9 * weights[name].abs().max()
    assert not torch.equal(written[name], written[name].bfloat16().float())
