"""The engine on a GPU that is not the current one, on a stand-in for CUDA: what is recorded on a
stream of another device runs at once and is not in the graph, as torch has it."""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from secondlook.engine import model_runner as step_module
from secondlook.engine.capacity import Need, episodes_that_fit
from secondlook.engine.engine import Engine
from secondlook.engine.model_runner import ModelRunner
from secondlook.episode import SamplingConfig, run_episodes, stream_episodes
from secondlook.models import packing, sampling
from secondlook.models.janus.model import Janus
from secondlook.train.memory_plan import REASON
from secondlook.train.model_sizes import PROMPT, config_of, sizes_of
from secondlook.types import Prompt, RowDrawn, SamplingParams

SECOND = torch.device("cuda", 1)


class InHostMemory(TorchFunctionMode):
    """Tensors that are asked for on a GPU, or in pinned memory, lie in ordinary memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {k: v for k, v in (kwargs or {}).items() if k != "pin_memory" and not self.gpu(v)}
        return func(*(torch.device("cpu") if self.gpu(a) else a for a in args), **kwargs)

    @staticmethod
    def gpu(x) -> bool:
        return isinstance(x, torch.device) and x.type in ("cuda", "mps")


class Cuda:
    """Two devices, of which the first is the current one; every use of a device is checked or
    noted."""

    def __init__(self):
        self.current, self.capturing, self.graphs, self.events, self.streams = 0, None, [], [], []
        self.free = 80 * 2**30

    def install(self, monkeypatch):
        for name in (
            "device",
            "Stream",
            "stream",
            "Event",
            "graph",
            "CUDAGraph",
            "graph_pool_handle",
            "current_stream",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda device: (self.free - 2**30, 80 * 2**30)
        )
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * 2**30)
        run = ModelRunner._run

        def run_or_record(step, *args):
            if self.capturing is not None:
                self.capturing.append(lambda: run(step, *args))
            else:
                run(step, *args)

        monkeypatch.setattr(ModelRunner, "_run", run_or_record)

    @contextmanager
    def device(self, device):
        before, self.current = self.current, device.index
        yield
        self.current = before

    def Stream(self, device=None):
        cuda = self

        class Stream:
            index = cuda.current if device is None else device.index

            def wait_stream(self, other):
                assert other.index == self.index

        self.streams.append(Stream())
        return self.streams[-1]

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.index
        yield
        self.current = before

    def current_stream(self, device=None):
        return self.Stream(device)

    def Event(self):
        cuda = self

        class Event:
            def record(self, stream=None):
                cuda.events.append(cuda.current if stream is None else stream.index)

            def synchronize(self):
                pass

        return Event()

    def CUDAGraph(self):
        class Graph(list):
            def replay(self):
                for work in self:
                    work()

        self.graphs.append(Graph())
        return self.graphs[-1]

    @contextmanager
    def graph(self, graph, pool=None, stream=None):
        self.seen = self.current if stream is None else stream.index
        assert self.current == SECOND.index, "the capture waits for the current device"
        self.capturing = graph if self.seen == SECOND.index else None
        yield
        self.capturing = None

    def graph_pool_handle(self):
        return object()


STARS = [Prompt(f"a photo of a {c} star") for c in ("red", "blue", "green")]
SAMPLING = SamplingConfig(guidance=2.0, code_top_k=50)


def episodes(engine):
    return run_episodes(engine, STARS, [0, 1, 2], 2, SAMPLING)


def rows_drawn(engine):
    """What is told of each episode's drawings while they are drawn."""
    events = stream_episodes(engine, STARS, [0, 1, 2], 2, SAMPLING)
    rows = [e for e in events if isinstance(e, RowDrawn)]
    return [[e for e in rows if e.prompt_index == i] for i in range(3)]


def test_an_engine_runs_on_its_models_device(janus, monkeypatch):
    """Drawn with the first device current and the model on the second: what a CPU draws."""
    exact = Janus(copy.deepcopy(janus.net).double(), janus.processor)
    there, rows_there = episodes(Engine(exact)), rows_drawn(Engine(exact))
    picture = there[0].rounds[0].image
    [codes] = Engine(exact).codes([picture])
    cuda = Cuda()
    cuda.install(monkeypatch)
    monkeypatch.setattr(step_module, "fused", lambda: step_module.BETWEEN)
    monkeypatch.setattr(packing, "flash_works", lambda *_: False)
    monkeypatch.setattr(Janus, "device", SECOND)
    with InHostMemory():
        engine = Engine(exact)
        here = episodes(engine)
        assert rows_drawn(engine) == rows_there, "told a step late, and the same"
        used = []
        to_codes, to_images = Janus.to_codes, Janus.to_images
        monkeypatch.setattr(
            Janus, "to_codes", lambda *a: (used.append(cuda.current), to_codes(*a))[1]
        )
        monkeypatch.setattr(
            Janus, "to_images", lambda *a: (used.append(cuda.current), to_images(*a))[1]
        )
        assert engine.codes([picture]) == [codes]
        assert len(engine.pictures([codes])) == 1
    assert [[t.tokens for t in e.turns] for e in here] == [
        [t.tokens for t in e.turns] for e in there
    ]
    assert cuda.graphs and all(cuda.graphs), "passes are in the graphs"
    assert (
        cuda.events
        and set(cuda.events) == {SECOND.index}
        and {s.index for s in cuda.streams} == {SECOND.index}
    )
    assert used == [SECOND.index] * 2 and cuda.current == 0


@pytest.mark.parametrize(("free", "fits"), [(80, 20), (63, 16), (40, 8), (5, 1)])
def test_no_more_episodes_than_fit(free, fits, monkeypatch):
    """Of 7B in bfloat16 on a GPU of 80 GiB, 3 rounds: the plan's own account."""
    cuda = Cuda()
    cuda.install(monkeypatch)
    cuda.free, text = free * 2**30, config_of("7b").text_config
    wide = SimpleNamespace(
        image_size=384,
        device=SECOND,
        dtype=torch.bfloat16,
        net=SimpleNamespace(config=SimpleNamespace(text_config=text)),
    )
    need, sizes = Need.of(PROMPT, 576, 3, REASON), sizes_of("7b")
    most = episodes_that_fit(wide, need, 32)
    pictures = sizes.image_side**2 * 7 * 512 * 2
    held = [
        (need.cache(n) + need.kept(n, 7)) * sizes.column_bytes(2) + pictures
        for n in (most, most + 1)
    ]
    assert most == fits and (most == 1 or held[0] <= (free - 4) * 2**30 < held[1] + 2**26)
    assert episodes_that_fit(wide, need, 3) == min(3, fits)


def test_tokens_are_chosen_in_float64_where_the_device_has_none():
    """As on Apple's GPUs, which refuse it: the choice is the CPU's."""

    class OnMps(torch.Tensor):
        device = torch.device("mps", 0)

        def double(self):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't "
                "support float64"
            )

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(64, 300, generator=generator).mul(4).log_softmax(-1)
    log_probs[:, 200:] = -torch.inf
    uniform = torch.rand(64, generator=generator)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-24])
    wanted = sampling.choose(SamplingParams("text"), log_probs, uniform)
    with InHostMemory():
        found = sampling.choose(
            SamplingParams("text"), log_probs.as_subclass(OnMps), uniform.as_subclass(OnMps)
        )
    for a, b in zip(wanted, found, strict=True):
        assert torch.equal(a, b.as_subclass(torch.Tensor))
    assert (wanted[0] < 200).all(), "a token of probability 0 is never chosen"
