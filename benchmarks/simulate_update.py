"""The update of a recipe at its full size, without weights: the job's own code under FSDP2, on a
process group that moves nothing, with tensors that have a shape and no numbers. What a rank holds
is counted as tensors come and go.

As on a GPU: attention by the flash kernel for sequences of many lengths, the optimizer over lists
of tensors (foreach). As in ``plan``, fragments and the CUDA context are not counted. A reference in
the CPU's memory is counted as if it lay on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor
from transformers.initialization import no_init_weights

from secondlook.data.sft_dataset import Example, Scored
from secondlook.models import packing
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import ChatTemplate
from secondlook.models.shipped import locate
from secondlook.rewards.reward import Score
from secondlook.train import memory_plan
from secondlook.train.activation_checkpointing import activation_checkpointing
from secondlook.train.distributed import Ranks
from secondlook.train.memory_plan import GIB, PROMPT, REASON, SPARE
from secondlook.train.optim import Update
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.critic import Critic
from secondlook.train.rl.loop import RLLoop
from secondlook.train.rl.minibatch import Row, idle_row, rows_of
from secondlook.train.sft import Batch, SFTConfig, SFTJob
from secondlook.types import Turn

T = TypeVar("T")


# --- tensors without numbers ---


class Alike(Ranks):
    """Ranks that all have the same work, so that each knows what the others say."""

    def gather(self, value: T) -> list[T]:
        return [value] * self.size


class _NoModules:
    """MemTracker's account by modules, left out: it refuses a module that is called again."""

    parents: frozenset[str] = frozenset()

    @property
    def is_bw(self) -> bool:
        return torch._C._current_graph_task_id() != -1

    def _nothing(self, *args: Any) -> None: ...

    register_user_hooks = clear_user_hooks = __enter__ = __exit__ = _nothing


class Memory(MemTracker):
    """Counts the bytes of all tensors that are made inside. A number read from a tensor that has
    none is 1, and a mask picks every place: what depends on values is counted at its most."""

    def __init__(self) -> None:
        super().__init__()
        self._mod_tracker: Any = _NoModules()
        self.peaks: dict[str, float] = {}
        """The most GiB that were held in each phase."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, FakeTensor) for t in types):
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1.0 if args[0].is_floating_point() else args[0].dtype == torch.bool or 1
            if func is torch.ops.aten.equal.default:
                return True
            if func is torch.ops.aten.index.Tensor:
                args = (
                    args[0],
                    [
                        i if i is None or i.dtype != torch.bool else i.long().flatten()
                        for i in args[1]
                    ],
                )
        return super().__torch_dispatch__(func, types, args, kwargs)

    @property
    def now(self) -> float:
        return sum(snap["Total"] for snap in self._curr_mem_snap.values()) / GIB

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note the peak inside under this name, where it is the phase's highest. Phases may lie in
        one another."""
        before, self._peak_mem = (
            self._peak_mem,
            {device: snap["Total"] for device, snap in self._curr_mem_snap.items()},
        )
        yield
        self.peaks[name] = max(self.peaks.get(name, 0.0), sum(self._peak_mem.values()) / GIB)
        self._peak_mem = {
            device: max(most, before.get(device, 0)) for device, most in self._peak_mem.items()
        }

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Every call of that method is a phase."""
        own: Callable = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return own(*args, **kwargs)

        setattr(owner, method, watched)


@contextmanager
def weightless(config: JanusConfig, ranks: int, flash: bool) -> Iterator[Memory]:
    """Inside, ``Janus.load`` gives a model of that config without weights, ``ranks`` processes are
    pretended, and what is held is counted."""

    def model(*args: Any, **kwargs: Any) -> Janus:
        with no_init_weights():
            net = JanusForConditionalGeneration._from_config(
                config, dtype=torch.float32, attn_implementation="sdpa"
            )
        return Janus(net.eval(), JanusProcessor.from_pretrained(locate("mini-base")))

    def mesh(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():  # who is where is asked of real numbers
            return init_device_mesh(*args, **kwargs)

    def zeros(x: Tensor) -> np.ndarray:
        return np.zeros(x.shape, dtype=float if x.is_floating_point() else int)

    to_list, to_array = Tensor.tolist, Tensor.numpy
    changes = (
        patch.object(Janus, "load", model),
        patch("secondlook.train.sharding.init_device_mesh", mesh),
        patch.object(torch.nn.Module, "to", lambda module, *args, **kwargs: module),
        patch.object(
            Tensor,
            "tolist",
            lambda x: zeros(x).tolist() if isinstance(x, FakeTensor) else to_list(x),
        ),
        patch.object(
            Tensor, "numpy", lambda x: zeros(x) if isinstance(x, FakeTensor) else to_array(x)
        ),
        patch.object(packing, "flash_works", lambda *args: flash),
        # what DTensor makes to learn shapes must not be counted: it takes a mode of its own for it
        patch("torch.distributed.tensor._sharding_prop.detect_fake_mode", lambda *args: None),
        patch(
            "torch.optim.adam._default_to_fused_or_foreach", lambda *args, **kwargs: (False, True)
        ),
    )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        with ExitStack() as stack:
            for change in changes:
                stack.enter_context(change)
            packing._ends.cache_clear()
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            yield stack.enter_context(Memory())
    finally:
        packing._ends.cache_clear()
        dist.destroy_process_group()


# --- what the job is given ---


def prompt_of(template: ChatTemplate, tokens: int) -> str:
    """A text that fills a prompt's template to so many tokens."""
    text = "star"
    while len(template.draw(text)[1].ids) < tokens:  # type: ignore[union-attr]
        text += " star"
    return text


def picture(janus: Janus) -> Image.Image:
    return Image.new("RGB", (janus.image_size, janus.image_size))


def longest_turns(job: RLLoop, editing: bool) -> tuple[Turn, Turn]:
    """The last drawing and the last verdict of an episode that never said Yes."""
    janus, template, sampling = job.janus, job.engine.template, job.sampling
    prompt, history = prompt_of(template, PROMPT), job.config.rounds - 1
    codes, reason = (1,) * janus.n_codes, (template.no,) * (REASON - 1) + (template.eos,)
    source = codes if editing else ()
    if history:
        segments = template.redraw(prompt, [codes] * history, [reason] * history, source)
    else:
        segments = template.edit(source, prompt) if editing else template.draw(prompt)
    drawn = Turn("redraw", segments, codes, (-1.0,) * len(codes), sampling.draw_params(editing), 0)
    pictures = [picture(janus) for _ in range(history + 1)]
    segments = template.judge(
        prompt, pictures, [reason] * history, picture(janus) if editing else None
    )
    sampling_params = sampling.judge_params(template.yes, template.no)
    return drawn, Turn("judge", segments, reason, (-1.0,) * len(reason), sampling_params, 0)


def optimizer_step(update: Update, memory: Memory) -> None:
    """The first step, which leaves the optimizer's state; later ones only clear gradients, for they
    hold no more."""
    fill_gradients(update)
    with memory.phase("optimizer"):
        update.step(1e-6)

    def cleared(lr: float) -> dict[str, float]:
        for p in update.parameters:
            p.grad = None
        return {"grad_norm": 1.0, "refused_steps": 0.0}

    update.step = cleared  # type: ignore[method-assign]


def fill_gradients(update: Update) -> None:
    """As after a micro-batch."""
    for p in update.parameters:
        p.grad = torch.zeros_like(p)


def update_rl(config: RLConfig, ranks: int, memory: Memory, editing: bool) -> None:
    """A step's learning from one micro-batch of drawn and from one of written turns, each as a
    later one of its minibatch."""
    config = replace(
        config,
        model="mini-base",
        prompts="mini",
        sanity_pairs="",
        device="cpu",
        least_separation=0.0,
    )
    parts = config.minibatches
    config = replace(config, minibatches=1, epochs=1, value_epochs=1)
    job = RLLoop(
        config, Path(), lambda items: [Score(1.0, True, "") for _ in items], Alike(0, ranks, "cpu")
    )
    optimizer_step(job.update, memory)
    memory.watch(job, "with_reference", "reference")
    turns = longest_turns(job, editing)
    rows = [
        rows_of(
            [turn] * config.micro,
            [1.0] * config.micro,
            config.reduction,
            job.janus.n_codes,
            [1.0] * config.micro,
        )
        for turn in turns
    ]
    job.idle = {turn.sampling_params.head: idle_row(turn) for turn in turns}
    states = (
        teach_critic(job, job.critic, memory, rows, parts) if job.critic is not None else []
    )  # held to the step's end
    minibatch = job.minibatch

    def later(*args: Any, **kwargs: Any) -> Any:
        fill_gradients(job.update)
        return minibatch(*args, **kwargs)

    for name, part in zip(("drawn turns", "written turns"), rows, strict=True):
        job.idle = {part[0].turn.sampling_params.head: idle_row(part[0].turn)}
        job.minibatch = later  # type: ignore[method-assign]
        memory.watch(job, "minibatch", name)
        with activation_checkpointing(job.janus, config.checkpointing):
            job.learn(np.random.default_rng(0), part, len(part), 1e-6, config.value_warmup)
    del states


def storages(tensors: list[Tensor]) -> int:
    """Bytes behind them."""
    return sum({s._cdata: s.nbytes() for s in map(Tensor.untyped_storage, tensors)}.values())


def teach_critic(
    job: RLLoop, critic: Critic, memory: Memory, rows: list[list[Row]], minibatches: int
) -> list[Tensor]:
    """The value head learns from a minibatch of its full size. Returns the states of all of a
    step's turns: passes are made for one micro-batch of a kind, and what it leaves is taken as
    often as there are turns."""
    c, width = job.config, job.janus.net.config.text_config.hidden_size
    n = c.prompts_per_step // job.ranks.size * c.group * c.rounds
    all_rows: list[Row] = []
    all_states: list[Tensor] = []
    for part in rows:
        with memory.phase("states of turns"):
            found = job.score_before(
                {row.index: row for row in part}, [[row.index for row in part]]
            )
        some = list(found.values())
        columns = (
            storages(some) // sum(map(len, some)) // some[0].itemsize
        )  # where its twin's are held too, twice the width
        size = len(part[0].turn.tokens)
        all_states += torch.empty(n * size, columns, dtype=some[0].dtype)[:, :width].split(size)
        told = (1.0,) * size
        all_rows += [
            replace(part[0], values=told, targets=told, index=len(all_rows) + i) for i in range(n)
        ]
        del found, some
    memory.peaks["states of turns"] += storages(all_states) / GIB
    picks = np.array_split(np.random.default_rng(0).permutation(2 * n), minibatches)[0].tolist()
    with memory.phase("value head"):
        critic.fit(all_rows, all_states, [picks], c.value_clip)
    return all_states


def update_sft(config: SFTConfig, ranks: int, memory: Memory, editing: bool) -> None:
    """One micro-batch a rank of each of the tasks, each as a later one of its step, with pictures
    that were not encoded yet."""
    everyone = config.micro * ranks
    config = replace(config, device="cpu", data=[], workers=0, batch=everyone)
    with patch("secondlook.train.sft.Pool", lambda *args, **kwargs: SimpleNamespace(unused="")):
        job = SFTJob(config, Alike(0, ranks, "cpu"))
    optimizer_step(job.update, memory)
    prompt, reason, side = (
        prompt_of(job.template, PROMPT),
        "No," + " star" * (REASON - 3),
        job.janus.image_size,
    )
    numbers = count()

    def scored() -> Scored:
        return Scored(next(numbers), 0.0, reason, Image.new("RGB", (side, side)))

    def examples(earlier: int) -> list[Example]:
        source = scored() if editing else None
        return [
            Example(prompt, tuple(scored() for _ in range(earlier)), scored(), source)
            for _ in range(config.micro)
        ]

    def kept(examples: list[Example]) -> list[tuple[Example, bool]]:
        return [(e, False) for e in examples]

    batches = {
        "drawn images": Batch(kept(examples(0)), [], [], (everyone, 0, 0)),
        "verdicts": Batch([], [], examples(config.judge_context - 1), (0, 0, everyone)),
        "redrawn images": Batch([], kept(examples(config.redraw_context)), [], (0, everyone, 0)),
    }
    for (name, batch), share in zip(batches.items(), config.mix, strict=True):
        if share:
            job.coming = iter([batch])
            fill_gradients(job.update)
            with memory.phase(name):
                job.step(0)


# --- the part ---


def run(
    recipe: Path,
    config: RLConfig | SFTConfig,
    ranks: int,
    memory: float,
    model: str = "",
    **options: Any,
) -> dict:
    """Peaks in GiB of one update of ``recipe`` on each of ``ranks`` GPUs of ``memory`` GiB, beside
    the plan's account. ``model``: "1b", "7b" or a checkpoint; default: what the recipe's name
    says."""
    model, editing = model or memory_plan.model_of(recipe, config), memory_plan.edits(recipe)
    flash = config.device.startswith("cuda") and config.dtype == "bfloat16"
    with weightless(memory_plan.config_of(model), ranks, flash) as held:
        if isinstance(config, RLConfig):
            update_rl(config, ranks, held, editing)
        else:
            update_sft(config, ranks, held, editing)
    most = max(held.peaks, key=held.peaks.__getitem__)
    planned = (
        sum(memory_plan.account(memory_plan.sizes(model), config, ranks, editing).update.values())
        / GIB
    )
    lines = [f"{name}: {peak:.2f} GiB" for name, peak in held.peaks.items()]
    lines.append(
        f"most: {held.peaks[most]:.1f} GiB a rank ({most}); plan: {planned:.1f} GiB "
        f"({planned / held.peaks[most] - 1:+.0%})"
    )
    if "value head" in held.peaks:
        lines.append(
            "states of turns are of two micro-batches, times their number; all else is counted "
            "from passes"
        )
    return {
        "name": "update",
        "peaks": held.peaks,
        "plan": planned,
        "fits": held.peaks[most] + SPARE / GIB <= memory,
        "lines": lines,
    }
