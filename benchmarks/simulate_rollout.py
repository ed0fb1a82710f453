"""A rank's rollout of a recipe at full size, without weights: the engine's own scheduler, slots and kept sequences, on the meta
device, where a tensor has a size and no values. Passes of the language model are left out; what they would sample is made up."""

from __future__ import annotations

import random
import weakref
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import JanusForConditionalGeneration
from transformers.initialization import no_init_weights

from decode import Words
from secondlook.engine import decode, pictures, rows, step
from secondlook.engine.decode import Engine
from secondlook.introspect import Sampling, introspect
from secondlook.model.janus import Janus
from secondlook.model.sequence import Batch, length
from secondlook.train import plan
from secondlook.train.rl_config import RLConfig
from secondlook.types import Prompt, Turn

GIB = 2**30


class Bytes(TorchDispatchMode):
    """Counts the bytes of the tensors on the meta device that were made inside and are alive."""

    def __init__(self, at_peak=lambda: None):
        super().__init__()
        self.now = self.peak = 0
        self.at_peak, self.known = at_peak, set[int]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor) and x.device.type == "meta":
                self._count(x.untyped_storage())
        return found

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

    def __init__(self, yes: float, shortest: int, seed: int):
        self.yes, self.shortest, self.seed = yes, shortest, seed
        self.steps = self.places = self.most = 0
        self.kept: weakref.WeakSet = weakref.WeakSet()
        self.cache: rows.Slots | None = None
        self.peak: dict[str, float] = {}
        self.served: weakref.WeakSet = weakref.WeakSet()

    def reason(self, run) -> int:
        """Tokens of a run's verdict with its reason."""
        return random.Random(f"{self.seed} {run.job.request.seed}").randint(min(self.shortest, run.job.steps), run.job.steps)

    def says_yes(self, run) -> bool:
        return random.Random(f"{self.seed} {run.job.request.seed} verdict").random() < self.yes

    def held(self) -> dict[str, float]:
        """GiB of the cache and of kept sequences now."""
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for k in self.kept for t in tensors(k.cache)}
        stored = 0 if self.cache is None else sum(t.nbytes for t in tensors(self.cache.stored))
        return {"key-value cache": stored / GIB, "kept sequences": sum(storages.values()) / GIB}


def tensors(x) -> list[torch.Tensor]:
    return [t for t in tree_leaves(x) if isinstance(t, torch.Tensor)]


def parts(log: Log) -> dict:
    """The engine's classes with what needs values replaced."""

    class SizedRows(rows.Rows):
        def __init__(self, *args):
            super().__init__(*args)
            log.cache = self.cache

        def sample(self) -> None:
            for run in self.runs:
                run.step += 1
                run.ended = run.job.rule.head == "text" and run.step > log.reason(run)  # noticed a token late

        def advance(self) -> None:
            log.steps += 1
            log.places += len(self.runs)
            for run in self.runs:
                run.length += 1

        def _turns(self, done):
            return [self._turn(run) for run in done]

        def _turn(self, run) -> Turn:
            request, rule = run.job.request, run.job.rule
            if rule.head == "code":
                tokens: tuple[int, ...] = (0,) * run.step
            else:
                verdict = self.protocol.yes if log.says_yes(run) else self.protocol.no
                tokens = (verdict, *([len(self.protocol.tokenizer.ids)] * (log.reason(run) - 2)), self.protocol.eos)
            return Turn(request.kind, request.segments, tokens, (), rule, request.seed, 0.5)

    class SizedPictures(pictures.Pictures):
        """As late as on a GPU."""

        def _start(self, asked, step):
            codes = torch.zeros(len(asked), self.janus.n_codes, dtype=torch.long, device="meta")
            self._pixels(codes)
            return pictures._Painting(asked, codes, None, step + pictures.STEPS * len(asked))

        def _finish(self, painting):
            return [(who, Image.new("RGB", (1, 1))) for who, _ in painting.asked]

    class Counted(rows.Kept):
        def __init__(self, *args):
            super().__init__(*args)
            log.kept.add(self)

    class Served(decode._Served):
        def __init__(self, *args):
            super().__init__(*args)
            log.served.add(self)

    def sized(janus: Janus, segments) -> Batch:
        lengths = [length(s, janus.n_patches) for s in segments]
        shape, width = (len(lengths), max(lengths)), janus.net.config.text_config.hidden_size
        embeds = torch.empty(*shape, width, dtype=janus.dtype, device="meta")
        at = torch.empty(shape, dtype=torch.long, device="meta")
        return Batch(embeds, torch.tensor(lengths, device="meta"), at)

    def hidden(self, embeds, positions=None, mask=None, cache=None):
        return torch.empty_like(embeds)

    return {
        "decode.Rows": SizedRows,
        "decode.Pictures": SizedPictures,
        "rows.Kept": Counted,
        "rows.assemble": sized,
        "janus.hidden": hidden,
    }


def janus_of(size: str, dtype: torch.dtype) -> Janus:
    with torch.device("meta"), no_init_weights():
        net = JanusForConditionalGeneration._from_config(plan.config_of(size), dtype=dtype).eval()
    net.generation_config.history = "codes"  # as stage 1 leaves it
    return Janus(net, type("Processor", (), {"tokenizer": Words()})())


def rollout(
    janus: Janus, batch: int, episodes: int, rounds: int, editing: bool, yes: float, shortest: int = 16, seed: int = 0
) -> tuple[Log, Bytes]:
    """Serve ``episodes`` of a rank. Returns what was seen, and the bytes."""
    log = Log(yes, shortest, seed)
    counted = Bytes(lambda: log.peak.update(log.held() | {"step": log.steps, "in flight": len(log.served)}))
    replaced, engine = parts(log), Engine(janus, batch)
    template = length(engine.protocol.draw("a"), janus.n_patches) - 1
    text = "a" * max(1, plan.PROMPT - template)
    source, codes = (Image.new("RGB", (1, 1)), (0,) * janus.n_codes) if editing else (None, ())
    prompts = [Prompt(text[:-3] + f"{i // 7 % 1000:03}", source, codes) for i in range(episodes)]
    with (
        patch.object(decode, "Rows", replaced["decode.Rows"]),
        patch.object(decode, "Pictures", replaced["decode.Pictures"]),
        patch.object(rows, "Kept", replaced["rows.Kept"]),
        patch.object(rows, "assemble", replaced["rows.assemble"]),
        patch.object(Janus, "hidden", replaced["janus.hidden"]),
        patch.object(step, "joined", step.side_by_side),  # as with weights that FSDP gathered
        counted,
    ):
        introspect(engine, prompts, list(range(episodes)), rounds, Sampling(code_top_k=0, text_top_k=0))
    return log, counted


if __name__ == "__main__":
    import sys, time
    size, batch, episodes, rounds = sys.argv[1], *map(int, sys.argv[2:5])
    j = janus_of(size, torch.bfloat16)
    for yes in map(float, sys.argv[5:]):
        t = time.time()
        log, b = rollout(j, batch, episodes, rounds, False, yes)
        print(size, batch, episodes, "yes", yes, f"peak {b.peak / GIB:.1f} left {b.now/GIB:.2f}", {k: round(v, 1) for k, v in log.peak.items()}, "steps", log.steps, "mean rows", round(log.places / log.steps, 2), f"{time.time()-t:.0f}s", flush=True)
