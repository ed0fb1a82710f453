"""A rank's rollout of a recipe at full size, without weights: the engine's own scheduler, slots and
cached prefixes, on torch's meta device, where a tensor has a size and no values. Passes of the
language model are left out; what they would sample is made up."""

from __future__ import annotations

import random
import re
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import JanusForConditionalGeneration
from transformers.initialization import no_init_weights

import decode as decode_benchmark  # not Words itself: this module's class has that name
from secondlook.engine import engine as engine_module
from secondlook.engine import image_codec, model_runner, running_batch
from secondlook.engine.engine import Engine
from secondlook.engine.kv_cache import KVCache
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.models.janus.model import Janus
from secondlook.models.janus.segments import Batch, length
from secondlook.models.janus.template import SPECIALS
from secondlook.train import memory_plan, model_sizes
from secondlook.train.rl.config import RLConfig
from secondlook.types import Prompt, Turn

GIB = 2**30
SHORT = 16
"""Tokens of the shortest reason, where lengths vary."""
DRAWING = ("key-value cache", "cached prefixes", "pictures")
"""Rows of the plan that are simulated; the others are weights, which do not change while episodes
are drawn."""


class Words(decode_benchmark.Words):
    """Whole words, as Janus's tokenizer has most of them."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        words = re.findall("|".join(map(re.escape, SPECIALS)) + r"| ?\w+|\W", text)
        return {"input_ids": [self.ids.get(word, len(self.ids)) for word in words]}


class Bytes(TorchDispatchMode):
    """Counts the bytes of the tensors on the meta device that were made inside and are alive."""

    def __init__(self, at_peak: Callable[[], None]):
        super().__init__()
        self.now = self.peak = 0
        self.at_peak, self.known = at_peak, set[int]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "meta":
                self._count(leaf.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        weakref.finalize(storage, self._gone, key, size)
        self.now += size
        if self.now > self.peak:
            self.peak = self.now
            self.at_peak()

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class Log:
    """What is under way, step by step."""

    def __init__(self, yes: float, shortest: int):
        self.yes, self.shortest = yes, shortest
        self.steps = self.places = self.under_way = self.most = 0
        self.kept: weakref.WeakSet = weakref.WeakSet()
        self.cache: KVCache | None = None
        self.peak: dict[str, float] = {}

    def reason(self, sequence) -> int:
        """Tokens of a verdict with its reason."""
        spec = sequence.spec
        shortest = min(self.shortest, spec.max_tokens)
        return random.Random(spec.request.seed).randint(shortest, spec.max_tokens)

    def says_yes(self, sequence) -> bool:
        return random.Random(f"{sequence.spec.request.seed} verdict").random() < self.yes

    def held(self) -> dict[str, float]:
        """GiB of the cache and of cached prefixes now."""
        bytes_of_storage: dict[int, int] = {}  # prefixes may share one
        for prefix in self.kept:
            for tensor in tensors(prefix.keys_values):
                storage = tensor.untyped_storage()
                bytes_of_storage[storage._cdata] = storage.nbytes()
        cache_bytes = 0
        if self.cache is not None:
            cache_bytes = sum(tensor.nbytes for tensor in tensors(self.cache.stored))
        return {
            "key-value cache": cache_bytes / GIB,
            "cached prefixes": sum(bytes_of_storage.values()) / GIB,
        }


def tensors(tree) -> list[torch.Tensor]:
    """All of them in nested lists and tuples."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def parts(log: Log) -> dict:
    """The engine's classes with what needs values replaced."""

    class SizedBatch(running_batch.RunningBatch):
        def __init__(self, *args):
            super().__init__(*args)
            log.cache = self.cache

        def sample(self) -> None:
            for sequence in self.sequences:
                sequence.num_sampled += 1
                if sequence.spec.sampling_params.head == "text":
                    # noticed a token late
                    sequence.ended = sequence.num_sampled > log.reason(sequence)

        def advance(self) -> None:
            log.steps += 1
            log.places += len(self.sequences)
            for sequence in self.sequences:
                sequence.length += 1

        def _turns(self, finished):
            return [self._made_up(sequence) for sequence in finished]

        def _made_up(self, sequence) -> Turn:
            request, sampling_params = sequence.spec.request, sequence.spec.sampling_params
            if sampling_params.head == "code":
                tokens: tuple[int, ...] = (0,) * sequence.num_sampled
            else:
                verdict = self.template.yes if log.says_yes(sequence) else self.template.no
                word = len(self.template.tokenizer.ids)
                reason = [word] * (log.reason(sequence) - 2)
                tokens = (verdict, *reason, self.template.eos)
            return Turn(
                request.kind, request.segments, tokens, (), sampling_params, request.seed, 0.5
            )

    class SizedCodec(image_codec.ImageCodec):
        def __init__(self, janus: Janus):
            super().__init__(janus)
            self._steps_per_image = image_codec.STEPS  # as on a GPU

        def _finish(self, decoding):
            return [(owner, Image.new("RGB", (1, 1))) for owner in decoding.owners]

    class Counted(running_batch.CachedPrefix):
        def __init__(self, *args):
            super().__init__(*args)
            log.kept.add(self)

    def sized(janus: Janus, segments) -> Batch:
        lengths = [length(s, janus.n_patches) for s in segments]
        shape, width = (len(lengths), max(lengths)), janus.net.config.text_config.hidden_size
        embeds = torch.empty(*shape, width, dtype=janus.dtype, device="meta")
        at = torch.empty(shape, dtype=torch.long, device="meta")
        return Batch(embeds, torch.tensor(lengths, device="meta"), at)

    def hidden(self, embeds, positions=None, mask=None, cache=None):
        return torch.empty_like(embeds)

    return {
        "RunningBatch": SizedBatch,
        "ImageCodec": SizedCodec,
        "CachedPrefix": Counted,
        "assemble": sized,
        "hidden": hidden,
    }


def janus_of(size: str, dtype: torch.dtype) -> Janus:
    with torch.device("meta"), no_init_weights():
        net = JanusForConditionalGeneration._from_config(
            model_sizes.config_of(size), dtype=dtype
        ).eval()
    net.generation_config.history = "codes"  # as stage 1 leaves it
    return Janus(net, type("Processor", (), {"tokenizer": Words()})())


def rollout(
    janus: Janus,
    batch: int,
    episodes: int,
    rounds: int,
    group: int,
    editing: bool,
    yes: float,
    shortest: int,
) -> tuple[Log, Bytes]:
    """Serve ``episodes`` of a rank, of which so many form a group; their verdicts are Yes with
    probability ``yes``, their reasons have ``shortest`` to 48 tokens. Returns what was seen, and
    the bytes."""
    log = Log(yes, shortest)
    counted = Bytes(lambda: log.peak.update(log.held() | {"step": log.steps}))
    replaced, engine = parts(log), Engine(janus, batch)
    template_tokens = length(engine.template.draw("a"), janus.n_patches) - 1
    more_words = " a" * (model_sizes.PROMPT - template_tokens - 1)  # one token each
    source, codes = None, ()
    if editing:
        source, codes = Image.new("RGB", (1, 1)), (0,) * janus.n_codes
    prompts = [Prompt(f"a{i // group}{more_words}", source, codes) for i in range(episodes)]

    async def watched(task):
        """Counts those that have begun and not ended."""
        log.under_way += 1
        log.most = max(log.most, log.under_way)
        returned = await task
        log.under_way -= 1
        return returned

    run = Engine.run
    with (
        patch.object(
            Engine, "run", lambda engine, tasks, need: run(engine, map(watched, tasks), need)
        ),
        patch.object(engine_module, "RunningBatch", replaced["RunningBatch"]),
        patch.object(engine_module, "ImageCodec", replaced["ImageCodec"]),
        patch.object(running_batch, "CachedPrefix", replaced["CachedPrefix"]),
        patch.object(running_batch, "assemble", replaced["assemble"]),
        patch.object(Janus, "hidden", replaced["hidden"]),
        patch.object(
            model_runner, "fuse_linear", model_runner.side_by_side
        ),  # as with weights that FSDP gathered
        counted,
    ):
        run_episodes(
            engine,
            prompts,
            list(range(episodes)),
            rounds,
            SamplingConfig(code_top_k=0, text_top_k=0),
        )
    return log, counted


def run(
    recipe: Path,
    config: RLConfig,
    ranks: int,
    memory: float,
    yes: Sequence[float] = (0.4,),
    **options,
) -> dict:
    """The rollout of one of ``ranks`` GPUs of ``memory`` GiB, for each share of Yes, and where
    every verdict is No and every reason cut off, so that all episodes are in step (an untrained
    judge). Peaks are GiB with the weights, the optimizer and the reference as ``plan`` counts
    them."""
    model, editing = model_sizes.model_of(recipe, config), model_sizes.edits(recipe)
    planned = memory_plan.account(model_sizes.sizes_of(model), config, ranks, editing).rollout
    planned_besides = [size for name, size in planned.items() if name not in DRAWING]
    besides_gib = sum(planned_besides) / GIB
    janus = janus_of(model, torch.bfloat16 if config.runtime.dtype == "bfloat16" else torch.float32)
    settings = config.rollout
    episodes = -(-settings.prompts_per_step // ranks) * settings.group_size
    batch = settings.rollout_batch_size or episodes
    peaks, lines = {}, []
    for yes_share, shortest in (*((share, SHORT) for share in yes), (0.0, memory_plan.REASON)):
        log, counted = rollout(
            janus,
            batch,
            episodes,
            settings.rounds,
            settings.group_size,
            editing,
            yes_share,
            shortest,
        )
        peak_gib = besides_gib + counted.peak / GIB
        peaks[f"{yes_share:g} yes, reasons of {shortest} tokens and more"] = peak_gib
        held = [f"{name} {size:.1f}" for name, size in log.peak.items() if name in DRAWING]
        lines.append(
            f"{yes_share:.0%} Yes, reasons of {shortest} tokens and more: {peak_gib:.1f} GiB at "
            f"step {log.peak['step']} of {log.steps} ({', '.join(held)}, all else "
            f"{besides_gib:.1f}); {log.most} episodes under way, "
            f"{log.places / log.steps:.1f} of {batch} places in use"
        )
    largest_peak, planned_gib = max(peaks.values()), sum(planned.values()) / GIB
    lines.append(
        f"rollout: at most {largest_peak:.1f} GiB a rank; plan says {planned_gib:.1f} "
        f"({planned_gib / largest_peak - 1:+.0%})"
    )
    return {
        "name": "rollout",
        "peaks": peaks,
        "plan": planned_gib,
        "fits": largest_peak + memory_plan.SPARE / GIB <= memory,
        "lines": lines,
    }
