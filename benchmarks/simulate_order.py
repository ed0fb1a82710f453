"""Ranks with unequal work: a recipe's own RL step on several real processes (gloo) with the shipped
miniature.

What can differ between ranks: groups without a score, groups that are left out, a judge that is
away or refuses on one rank alone. In each case all ranks must call the same collectives in the same
order, end in the same way (the same metrics, or the same exception), and hold the weights that one
process holds that was given all of the work.
"""

from __future__ import annotations

import multiprocessing
import queue
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

import secondlook.train.rl.rollout as rollout
from secondlook.config import changed
from secondlook.engine.engine import Engine
from secondlook.errors import InputError, Stopped
from secondlook.mini.datasets import EDITS, KINDS
from secondlook.rewards.reward import Score
from secondlook.train.distributed import ProcessGroup
from secondlook.train.model_sizes import edits
from secondlook.train.rl.algorithms import algorithms
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import RLLoop
from secondlook.train.rl.policy_update import PolicyUpdate
from secondlook.types import Episode, Prompt

RANKS, GROUP = 4, 2
NEAR = 1e-5
"""How far a weight may be from that of one process: sums are made in another order."""
SECONDS = 120
"""Ranks that wait longer for each other are not in step."""


@dataclass(frozen=True)
class Case:
    """What is unequal in a step of one prompt a rank."""

    name: str
    missing: tuple[int, ...] = ()
    """Prompts whose pictures have no score."""
    once: tuple[int, ...] = ()
    """Prompts whose first picture has none."""
    flat: tuple[int, ...] = ()
    """Prompts whose pictures all earn the same."""
    refused: tuple[int, ...] = ()
    """Prompts of which the judge says that they cannot be used."""
    settings: dict[str, Any] = field(default_factory=dict)
    max_missing: float = 1.0
    ends: str = ""
    """The exception that the step must end with; "": none."""
    learns: bool = True
    """Weights move."""


CASES = (
    Case("equal work"),
    Case("no turns for one rank: its judge is away", missing=(1,)),
    Case("a missing score", once=(2,)),
    Case(
        "turns for one rank only, fewer than there are minibatches",
        missing=(0, 1, 3),
        settings={"optim.minibatches": 20},
    ),
    Case("a group is dropped", flat=(0,), settings={"advantage.drop_flat_groups": True}),
    Case(
        "all groups are dropped",
        flat=(0, 1, 2, 3),
        settings={"advantage.drop_flat_groups": True},
        learns=False,
    ),
    Case(
        "the judge is away on one rank, and that is too much",
        missing=(3,),
        max_missing=0.1,
        ends="Stopped",
        learns=False,
    ),
    Case("the judge refuses a prompt of one rank", refused=(2,), ends="InputError", learns=False),
)


class Judge:
    """How bright a picture is, but for what a case says of its prompt."""

    def __init__(self) -> None:
        self.case, self.prompts = CASES[0], [""] * RANKS

    def __call__(self, items: Sequence[tuple[str, Any]]) -> list[Score | None]:
        seen: set[str] = set()
        return [self._score(text, image, seen) for text, image in items]

    def edits(self, items: Sequence[tuple[str, Any, Any]]) -> list[Score | None]:
        return self([(text, image) for text, _, image in items])

    def _score(self, text: str, image: Any, seen: set[str]) -> Score | None:
        def is_one_of(numbers: tuple[int, ...]) -> bool:
            return text in {self.prompts[i] for i in numbers}

        first = text not in seen
        seen.add(text)
        if is_one_of(self.case.refused):
            raise InputError(f"prompt: {text!r} cannot be judged")
        if is_one_of(self.case.missing) or (is_one_of(self.case.once) and first):
            return None
        value = 0.5 if is_one_of(self.case.flat) else float(np.asarray(image).mean()) / 255
        return Score.of_edit(value, value, value > 0.5, "it is bright")


class Recorded(TorchDispatchMode):
    """Writes down the collectives that are called, with the shapes of what they move."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:  # it is asked again of the tensors inside
            return NotImplemented
        if func.namespace in ("c10d", "_c10d_functional"):
            arguments = tree_map_only(Tensor, lambda x: str(tuple(x.shape)), (args, kwargs))
            # besides tensors' shapes only names of reductions and groups are texts
            texts = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, str)]
            self.calls.append(f"{func} {' '.join(texts)}")
        return func(*args, **kwargs or {})


@dataclass
class Ended:
    """What one rank saw of a case."""

    calls: list[str]
    how: str
    """Metrics or exception, as text."""
    weights: dict[str, np.ndarray]
    """On the first rank; the others have none."""
    moved: float
    """How far the weight that was moved most is from where it began."""


def tiny(config: RLConfig, model: str, editing: bool) -> RLConfig:
    """The recipe's settings for a small model, one prompt a rank, in float32."""
    small: dict[str, Any] = {
        "model": model,
        "prompts": "mini",
        "sanity_pairs": "",
        "prompt_options": {"kinds": EDITS if editing else KINDS},
        "lora_rank": 2 if config.lora_rank else 0,
        "rollout.prompts_per_step": RANKS,
        "rollout.group_size": GROUP,
        "rollout.rounds": min(config.rollout.rounds, 2),
        "rollout.rollout_batch_size": 0,
        "ppo.value_warmup_steps": 0,
        "ppo.value_epochs": 2,
        "optim.lr": 1e-4,
        "optim.warmup_steps": 0,
        "runtime.device": "cpu",
        "runtime.dtype": "float32",
        "runtime.micro_batch_size": 64,
        "runtime.dp_shard_degree": RANKS // 2 if config.runtime.dp_shard_degree else 0,
        "runtime.picture_every": 1,
        "reward_checks.min_separation": 0.0,
        "reward_checks.max_flat_steps": 100,
        "auto_recovery": None,
    }
    return changed(config, small)


def drawn_once(run_episodes: Callable) -> Callable:
    """Cases begin with the same weights and seeds, so that their episodes are the same, too: they
    are drawn once. Ranks say nothing to each other meanwhile."""
    drawn: dict[tuple[int, ...], list[Episode]] = {}

    def known(engine: Engine, prompts: list[Prompt], seeds: list[int], *args: Any) -> list[Episode]:
        if tuple(seeds) not in drawn:
            with _disable_current_modes():
                drawn[tuple(seeds)] = run_episodes(engine, prompts, seeds, *args)
        return drawn[tuple(seeds)]

    return known


class Runner:
    """A job that begins anew with every case."""

    def __init__(self, config: RLConfig, out: Path, ranks: ProcessGroup):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        self.judge = Judge()
        self.loop = RLLoop(config, out, self.judge, ranks)
        self.parameters = [p for p in self.loop.janus.net.parameters() if p.requires_grad]
        self.start = [self._local(p).clone() for p in self.parameters]
        prompts = self.loop.prompts.draw(np.random.default_rng([config.seed, 0]), RANKS)
        self.judge.prompts = [prompt.text for prompt in prompts]
        rollout.run_episodes = drawn_once(rollout.run_episodes)

    @staticmethod
    def _local(p: Tensor) -> Tensor:
        return p.detach().to_local() if isinstance(p, DTensor) else p.detach()

    def _renew(self, config: RLConfig) -> None:
        """Weights, optimizer and critic as at the start; the case's settings everywhere."""
        loop = self.loop
        for p, value in zip(self.parameters, self.start, strict=True):
            self._local(p).copy_(value)
            p.grad = None
        loop.config = config
        loop.algorithm = algorithms.get(config.algorithm)(config, loop.janus, loop.ranks)
        loop.policy_update = PolicyUpdate(
            config,
            loop.algorithm,
            loop.shards,
            loop.reference,
            loop.engine.template,
            loop.policy_update.agreement,
        )

    def run(self, case: Case, config: RLConfig) -> Ended:
        loop = self.loop
        self._renew(changed(config, case.settings))
        loop.reward_checks.config = replace(config.reward_checks, max_missing=case.max_missing)
        self.judge.case = case
        with Recorded() as recorded:
            try:
                how = metrics_text(loop.step(0))
            except (InputError, Stopped) as error:
                how = f"{type(error).__name__}: {error}"
        full = loop.shards.full_state_dict()
        weights = {name: value.numpy().copy() for name, value in full.items()}
        moved = 0.0
        for p, value in zip(self.parameters, self.start, strict=True):
            if value.numel():
                moved = max(moved, float((self._local(p) - value).abs().max()))
        return Ended(recorded.calls, how, weights, moved)


def metrics_text(metrics: dict[str, float]) -> str:
    """A step's metrics but for those of time, by name."""
    texts = []
    for name, value in sorted(metrics.items()):
        if "second" not in name:
            texts.append(f"{name} {value:.4g}")
    return ", ".join(texts)


def work(
    rank: int, size: int, store: str, config: RLConfig, cases: Sequence[Case], told: Any
) -> None:
    """One process: all cases in turn. It puts (processes, rank, case, what came) into the queue
    ``told``."""
    torch.set_num_threads(1)
    try:
        if size > 1:
            shared = dist.FileStore(store, size)
            dist.init_process_group(
                "gloo", store=shared, rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS)
            )
        runner = Runner(
            config, Path(store).parent / f"{size}-{rank}", ProcessGroup(rank, size, "cpu")
        )
        for i, case in enumerate(cases):
            told.put((size, rank, i, runner.run(case, config)))
    except BaseException as error:
        told.put((size, rank, -1, Ended([], f"{type(error).__name__}: {error}", {}, 0.0)))
        raise


def rolled(config: RLConfig, cases: Sequence[Case]) -> dict[tuple[int, int, int], Ended]:
    """What every process saw of every case, by (processes, rank, case); case -1 is an end before
    its time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["secondlook.train.rl.loop", __name__])
    told = context.Queue()
    seen: dict[tuple[int, int, int], Ended] = {}
    with TemporaryDirectory() as folder:
        processes = []
        for rank, size in [(0, 1), *((rank, RANKS) for rank in range(RANKS))]:
            arguments = (rank, size, f"{folder}/store", config, cases, told)
            processes.append(context.Process(target=work, args=arguments, daemon=True))
        for process in processes:
            process.start()
        try:
            while len(seen) < len(processes) * len(cases):
                size, rank, case_index, ended = told.get(timeout=2 * SECONDS)
                seen[size, rank, case_index] = ended
                if case_index < 0:  # the others would wait for it
                    break
        except queue.Empty:
            pass
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
    return seen


def wrong_with(case: Case, ranks: list[Ended], alone: Ended) -> str:
    """What the ranks of a case did otherwise than each other or than one process; "": nothing."""
    first = ranks[0]
    for rank, other in enumerate(ranks):
        if other.calls != first.calls:
            call_number = first_difference(other.calls, first.calls)
            return (
                f"collective {call_number} of rank {rank} is not the first rank's "
                f"({len(other.calls)} and {len(first.calls)} in all)"
            )
        if other.how != first.how:
            return f"rank {rank} ended with {other.how!r} and the first with {first.how!r}"
    ended = first.how.split(":")[0] if first.how.startswith(("Stopped:", "InputError:")) else ""
    if ended != case.ends or (ended and first.how != alone.how):
        return f"it ended with {first.how!r}, one process with {alone.how!r}"
    if case.learns != (alone.moved > NEAR):
        return f"one process's weights moved by {alone.moved:.1g}"
    distances = []
    for name, weight in alone.weights.items():
        distances.append(float(np.abs(first.weights[name] - weight).max()))
    furthest = max(distances)
    return f"a weight is {furthest:.1g} away from one process's" if furthest > NEAR else ""


def first_difference(calls: list[str], others: list[str]) -> int:
    """The place of the first call that is another one; the end of the shorter list, where it is the
    beginning of the longer one."""
    for place, (call, other) in enumerate(zip(calls, others, strict=False)):
        if call != other:
            return place
    return min(len(calls), len(others))


_known: dict[str, dict] = {}
"""Results by settings: recipes for models of two sizes differ in nothing that is left of them
here."""


def run(
    recipe: Path,
    config: RLConfig,
    ranks: int,
    memory: float,
    cases: Sequence[Case] = CASES,
    small: str = "mini-base",
    **options: Any,
) -> dict:
    """All cases with ``recipe``'s settings on four processes and on one, with the model ``small``;
    how many ranks the recipe is for and their ``memory`` do not matter here."""
    config = tiny(config, small, edits(recipe))
    key = f"{config} {cases}"
    if key not in _known:
        _known[key] = compared(config, cases)
    return dict(_known[key])


def compared(config: RLConfig, cases: Sequence[Case]) -> dict:
    """Whether ranks and one process did the same in all cases, and a line on each."""
    seen = rolled(config, cases)
    ended_early = []
    for (size, rank, case_index), ended in seen.items():
        if case_index < 0:
            ended_early.append(f"rank {rank} of {size}: {ended.how}")
    early_text = "; ".join(ended_early) or "ranks waited for each other"
    lines, all_right = [], True
    for i, case in enumerate(cases):
        of_ranks = [seen[RANKS, rank, i] for rank in range(RANKS) if (RANKS, rank, i) in seen]
        if len(of_ranks) < RANKS or (1, 0, i) not in seen:
            line = wrong = f"it did not come to its end ({early_text})"
        else:
            line = wrong = wrong_with(case, of_ranks, seen[1, 0, i])
        if not wrong:
            num_calls = len(of_ranks[0].calls)
            line = f"{num_calls} collectives, the same on {RANKS} ranks; weights of one process"
        all_right = all_right and not wrong
        lines.append(f"{case.name}: {line}")
    return {"name": "order", "peaks": {}, "fits": all_right, "lines": lines}
