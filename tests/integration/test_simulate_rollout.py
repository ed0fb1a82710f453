"""A recipe's rollout at full size, without weights: the engine's own scheduler holds what the plan
says."""

import sys
from pathlib import Path

import pytest
import torch

from secondlook.config import load
from secondlook.engine.image_codec import ImageCodec
from secondlook.recipes import find_config
from secondlook.train import model_sizes
from secondlook.train.rl.config import RLConfig

ROOT = Path(__file__).parents[2]
GIB = 2**30


@pytest.fixture(scope="module")
def simulated():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import simulate_rollout

    yield simulate_rollout
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def janus(simulated):
    return simulated.janus_of("7b", torch.bfloat16)


@pytest.mark.parametrize("stem", ["7b/grpo", "7b/edit_grpo"])
def test_a_recipe_holds_what_the_plan_says(stem, simulated):
    """An eighth of its step; what is under way at once is its own."""
    recipe = find_config(stem)
    config = load(RLConfig, recipe, ["rollout.prompts_per_step=16"])
    result = simulated.run(recipe, config, 8, 80.0, yes=())
    most = max(result["peaks"].values())
    assert result["fits"] and 0.99 * most < result["plan"] < 1.1 * most, result["lines"]


def test_no_more_are_under_way_than_the_batch(simulated, janus, monkeypatch):
    """Pictures are late, as on a GPU: nobody new begins for those who wait for one."""
    waiting: list[int] = []
    collect = ImageCodec.collect

    def counted(codec, step, idle):
        waiting.append(codec.pending)
        return collect(codec, step, idle)

    monkeypatch.setattr(ImageCodec, "collect", counted)
    log, _ = simulated.rollout(janus, 4, 10, 2, 2, False, 0.3, 16)
    assert log.most == 4 == max(waiting)


def test_the_cache_grows_a_layer_at_a_time(simulated):
    from secondlook.engine.kv_cache import KVCache

    counted = simulated.Bytes(lambda: None)
    with counted:
        slots = KVCache(10, 2, 8, torch.empty(0, device="meta"))
        assert slots.reserve(4, 640) and not slots.reserve(4, 640)
        before = counted.now
        assert slots.reserve(4, 1280)
        assert (
            counted.now == pytest.approx(2 * before, rel=0.01) and counted.peak < 1.1 * counted.now
        )
        taken = slots.take(1, 100)
        assert counted.now == pytest.approx(2 * before + taken.nbytes, rel=0.01), (
            "a copy of its own length"
        )


def test_a_recipes_model_is_its_own_or_as_its_name_says(tmp_path):
    of = model_sizes.model_of
    assert of(Path("1b/grpo_lora.toml"), RLConfig("out/sft/final")) == "1b"
    assert of(Path("mine.toml"), RLConfig("deepseek-ai/Janus-Pro-7B")) == "7b"
    assert of(Path("mine_7b.toml"), RLConfig("mini")) == "mini"
    with pytest.raises(model_sizes.InputError, match="--model"):
        of(Path("mine.toml"), RLConfig("out/sft/final"))
