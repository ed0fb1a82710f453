"""What an update holds, without weights: as with them, and as the plan says."""

from unittest.mock import patch

import pytest
import torch.distributed as dist

from secondlook.config import changed, load
from secondlook.models.janus.model import Janus
from secondlook.recipes import FOLDER as RECIPES
from secondlook.train import model_sizes
from secondlook.train.rl.config import RLConfig
from secondlook.train.sft_config import SFTConfig


@pytest.fixture
def update():
    found = pytest.importorskip("simulate_update")
    yield found
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["1b/ppo", pytest.param("1b/sft_lora", marks=pytest.mark.slow)])
def test_as_much_as_with_weights(update, name):
    """One rank, the same code on tensors that have numbers."""
    kind, part = (SFTConfig, update.update_sft) if "sft" in name else (RLConfig, update.update_rl)
    small = {"model": "mini-base", "runtime.micro_batch_size": 1}
    if "lora" in name:
        small |= {"lora_rank": 2}
    else:
        small |= {
            "rollout.prompts_per_step": 2,
            "rollout.guidance": 5.0,
            "reward_checks.max_logprob_diff_mean": 1e9,
            "reward_checks.max_logprob_diff_p99": 1e9,
        }
    config = changed(load(kind, RECIPES / f"{name}.toml", []), small)
    with update.weightless(model_sizes.config_of("mini-base"), 1, False) as without:
        part(config, 1, without, False)
    lists = patch(
        "torch.optim.adam._default_to_fused_or_foreach", lambda *args, **kwargs: (False, True)
    )
    no_copies = patch("torch.equal", lambda *args: True)  # of encoders, in the CPU's memory
    with lists, no_copies, update.Memory() as real:
        part(config, 1, real, False)
    assert real.peaks.keys() == without.peaks.keys()
    assert without.peaks == pytest.approx(real.peaks, rel=0.02)


def test_as_the_plan_says(update):
    path = RECIPES / "1b/edit_sft.toml"
    result = update.run(path, load(SFTConfig, path, []), 8, 80.0)
    assert result["fits"] and result["plan"] == pytest.approx(
        max(result["peaks"].values()), rel=0.1
    )


def test_a_pass_is_given_what_it_was_given(update):
    """FSDP would make every dataclass anew."""
    from secondlook.train.distributed import ProcessGroup
    from secondlook.train.optim import freeze
    from secondlook.train.sharding import ShardedModel
    from secondlook.types import ImageCodes

    janus = Janus.load("mini-base")
    freeze(janus)
    given, seen = [ImageCodes((1, 2))], []
    ShardedModel(janus, ProcessGroup(), "bfloat16").run(
        lambda segments: seen.append(segments[0]), given
    )
    assert seen[0] is given[0]
