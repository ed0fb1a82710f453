"""What only a GPU has: graphs, flash attention and pictures beside the steps give what a CPU gives.
Skipped without one."""

import pytest
import torch

from secondlook.engine.engine import Engine
from secondlook.engine.model_runner import ModelRunner
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.models import sampling as policy
from secondlook.models.janus.model import Janus
from secondlook.train.rl.logprob_agreement import LIMITS, Agreement
from secondlook.train.rl.micro_batches import pack
from secondlook.train.rl.trajectory import TrajectoryTurn
from secondlook.types import Prompt, Request, SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PROMPTS = [
    "a photo of a red star",
    "a photo of two cats",
    "a photo of a blue cup left of an orange umbrella",
]


@pytest.fixture(scope="module")
def half():
    return Janus.load("mini", "cuda", torch.bfloat16)


HOT = SamplingConfig(guidance=3.0, code_top_k=50, temperature=2.0)
"""So that verdicts are No as well."""


def episodes(janus, batch=64, n=12, sampling=HOT):
    engine = Engine(janus, batch)
    return run_episodes(
        engine, [Prompt(PROMPTS[i % 3]) for i in range(n)], list(range(n)), 3, sampling
    )


def tokens(found):
    return [[t.tokens for t in e.turns] for e in found]


def test_the_same_as_on_a_cpu():
    """In float64, where rounding decides nothing: refilled batches, forks, kept sequences, graphs
    that are made anew."""
    here, there = (
        episodes(Janus.load("mini", device, torch.float64), batch=5) for device in ("cuda", "cpu")
    )
    assert {len(e.rounds) for e in here} == {1, 2, 3}
    assert tokens(here) == tokens(there)
    for a, b in zip(here, there, strict=True):
        assert [r.p_yes for r in a.rounds] == pytest.approx([r.p_yes for r in b.rounds], abs=1e-3)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_gpu_named_by_its_number(device):
    """The first is current all the while, and has made graphs before."""
    if torch.device(device).index >= torch.cuda.device_count():
        pytest.skip(f"no {device}")
    torch.cuda.set_device(0)
    there, _, here = (
        episodes(Janus.load("mini", d, torch.float64), batch=5) for d in ("cpu", "cuda:0", device)
    )
    assert tokens(here) == tokens(there) and torch.cuda.current_device() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_change_nothing(dtype, monkeypatch):
    janus = Janus.load("mini", "cuda", dtype)
    replayed = episodes(janus)
    monkeypatch.setattr(
        ModelRunner,
        "__call__",
        lambda step, state, rows, end: step._run(state, *step._shape(rows, end)),
    )
    assert tokens(replayed) == tokens(episodes(janus))


def test_recorded_logprobs_are_the_policys(half):
    """Half-precision attention over used lengths against the teacher-forced pass, sampled as in
    training, by its own check."""
    turns = [
        t for e in episodes(half, n=48, sampling=SamplingConfig(5.0, 1.0, 0, 0)) for t in e.turns
    ]
    agreement = Agreement(*LIMITS["bfloat16"], 0.2, 0.2, 2.0)
    learned = [
        TrajectoryTurn(turn.kind, 0.5, turn, advantage=1.0, index=i) for i, turn in enumerate(turns)
    ]
    for batch in pack(learned, 16, half.device):
        with torch.no_grad():
            agreement.add(batch, policy.score(half, Engine(half).template, batch.turns))
    print(told := agreement.check())
    assert told["sampler_outside"] < 0.1


def test_rows_of_every_number(half):
    engine, sampling_params = Engine(half), SamplingParams("code", guidance=5.0, temperature=0.0)
    for n in (1, 2, 3, 5, 17):
        turns = engine.draw(
            [Request("draw", engine.template.draw(PROMPTS[i % 3]), i) for i in range(n)],
            sampling_params,
        )
        assert all(turns[i].tokens == turns[i % 3].tokens for i in range(n))
