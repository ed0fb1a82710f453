r"""Drawing, three ways in one run: the original-style loop, transformers' own generate, and this
engine. Same weights, same prompts, greedy with guidance; the codes must be equal.

    python benchmarks/decode.py --device cpu --layers 12 --width 768 --batch 1 8 32 \
        --json out/decode.json
    python benchmarks/decode.py --device cuda --size 1b --dtype bfloat16 --batch 1 8 16 32 128 \
        --json out/decode.json

Times are of the codes alone; the first image is there after one picture's decoding more. The bound
of an engine's step is the larger of two times: reading weights and keys and values once at the
measured bandwidth, and multiplying at the measured peak.
"""

import argparse
import platform
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from secondlook.engine.engine import Engine
from secondlook.io import versions, write_json
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import SPECIALS
from secondlook.train.model_sizes import SIZES
from secondlook.types import Request, SamplingParams

CODES = 16384
WORDS = [*SPECIALS, "Yes", "No", *"abcdefghijklmnopqrstuvwxyz:,. \n"]


class Words:
    """A stand-in for a tokenizer: special tokens and letters, one id each."""

    def __init__(self):
        self.ids = {word: i for i, word in enumerate(WORDS)}
        self.bos_token_id, self.eos_token_id, self.pad_token_id = range(3)
        self.added_tokens_decoder: dict[int, str] = {}

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        found = []
        while text:
            word = next((w for w in WORDS if text.startswith(w)), text[0])
            found.append(self.ids.get(word, len(WORDS)))
            text = text[len(word) :]
        return {"input_ids": found}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(WORDS[i] for i in ids if len(SPECIALS) <= i < len(WORDS))


def new_janus(args, small_encoders: bool = False) -> Janus:
    """Random weights. The seeing encoder is small, for drawing does not use it; with
    ``small_encoders`` the VQ is, too."""
    layers, width, inner, heads = (
        SIZES[args.size]
        if args.size
        else (args.layers, args.width, args.width * 8 // 3 // 64 * 64, args.width // 64)
    )
    side = round(args.codes**0.5)
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=102400 if args.size else getattr(args, "vocabulary", 1024),
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=16384,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=side * 16,
            num_image_tokens=args.codes,
            projection_dim=width,
        ),
        vq_config=JanusVQVAEConfig(
            num_embeddings=CODES,
            num_patches=side,
            projection_dim=width,
            image_token_embed_dim=width,
            base_channels=32 if small_encoders else 128,
        ),
        image_token_id=WORDS.index("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(args.device):
        net = JanusForConditionalGeneration._from_config(
            config, dtype=getattr(torch, args.dtype)
        ).eval()
    torch.nn.init.normal_(net.model.generation_embeddings.weight)
    torch.nn.init.normal_(
        net.model.generation_head.vision_head.weight, std=1.0
    )  # varied codes, no ties
    net.generation_config.generation_kwargs = {"boi_token_id": WORDS.index("<begin_of_image>")}
    net.generation_config.guidance_scale = args.guidance
    (
        net.generation_config.bos_token_id,
        net.generation_config.eos_token_id,
        net.generation_config.pad_token_id,
    ) = range(3)
    return Janus(net, type("Processor", (), {"tokenizer": Words()})())


@torch.inference_mode()
def original(janus: Janus, ids: torch.Tensor, args) -> torch.Tensor:
    """As the published code draws: two rows a sample, the conditional one first."""
    rows = ids.repeat_interleave(2, 0)
    rows[1::2, 1:-1] = janus.tokenizer.pad_token_id
    return grown(janus, janus.embed_text(rows), args.codes, args.guidance)


def grown(janus: Janus, embeds: torch.Tensor, codes: int, guidance: float) -> torch.Tensor:
    """The published loop: a cache that grows, the head on every row, then the mixing; greedy."""
    net, cache, drawn = janus.net, None, []
    for _ in range(codes):
        out = net.model.language_model(inputs_embeds=embeds, use_cache=True, past_key_values=cache)
        cache = out.past_key_values
        logits = net.model.generation_head(out.last_hidden_state[:, -1])
        mixed = logits[1::2] + guidance * (logits[::2] - logits[1::2])
        drawn.append(torch.softmax(mixed, -1).argmax(-1))
        embeds = janus.embed_codes(drawn[-1].repeat_interleave(2)[:, None])
    return torch.stack(drawn, 1)


@torch.inference_mode()
def transformers(janus: Janus, ids: torch.Tensor, args) -> torch.Tensor:
    mask = torch.ones_like(ids)
    return janus.net.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_mode="image",
        do_sample=False,
        use_cache=True,
        max_new_tokens=args.codes,
    )[:, -args.codes :]


def ours(janus: Janus, ids: torch.Tensor, args) -> torch.Tensor:
    engine = Engine(janus, batch=len(ids))
    sampling_params = SamplingParams("code", guidance=args.guidance, temperature=0.0)

    async def drawn(text: str):
        request = Request("draw", engine.template.draw(text), 0)
        return await engine.generate(request, sampling_params, args.codes)

    turns = engine.run(drawn(text) for text in texts(len(ids), args.group))
    return torch.tensor([t.tokens for t in turns], device=ids.device)


def texts(n: int, group: int = 1) -> list[str]:
    """Prompts, ``group`` in a row the same; of equal length, for the original loop has no
    padding."""
    return [
        f"a photo of {chr(ord('a') + i // group % 26)}{chr(ord('a') + i // group // 26)}"
        for i in range(n)
    ]


def watch(device: str):
    """Start to watch memory; the returned function says the peak since then, less what was used
    before, in bytes."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - before

    def status(key: str) -> int:
        return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS:")
    return lambda: status("VmHWM:") - before


def clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def machine(args) -> tuple[float, float]:
    """Bytes a second read and operations a second multiplied, the best of five."""
    dtype = getattr(torch, args.dtype)
    big = torch.ones(2**28 if args.device == "cpu" else 2**31, dtype=dtype, device=args.device)
    side = 2048 if args.device == "cpu" else 8192
    square = torch.randn(side, side, dtype=dtype, device=args.device)
    read, multiplied = [], []
    for _ in range(5):
        start = clock(args.device)
        big.sum() if args.device == "cpu" else torch.add(big, 1, out=big)
        read.append(clock(args.device) - start)
        start = clock(args.device)
        square @ square
        multiplied.append(clock(args.device) - start)
    moved = big.nbytes * (1 if args.device == "cpu" else 2)
    return moved / min(read), 2 * side**3 / min(multiplied)


def bound(janus: Janus, batch: int, prompt: int, args, bandwidth: float, peak: float) -> float:
    """Seconds that drawing ``batch`` images takes at least."""
    text, size = janus.net.config.text_config, janus.net.lm_head.weight.element_size()
    layers = sum(p.numel() for p in janus.net.model.language_model.layers.parameters())
    head = janus.net.model.generation_head
    rows = 2 * batch
    total = 0.0
    for step in range(args.codes):
        states = 2 * rows * (prompt + step) * text.hidden_size * text.num_hidden_layers
        moved = size * (layers + sum(p.numel() for p in head.parameters()) + states)
        operations = (
            2 * rows * (layers + head.proj_out.weight.numel())
            + 2 * batch * head.vision_head.weight.numel()
            + 2 * states
        )
        total += max(moved / bandwidth, operations / peak)
    return total


WAYS = {"original": original, "transformers": transformers, "ours": ours}


def compare(
    janus: Janus, batch: int, args, bandwidth: float, peak: float, console: Console
) -> dict:
    template = Engine(janus).template
    ids = torch.tensor(
        [[i for s in template.draw(t) for i in s.ids] for t in texts(batch, args.group)],
        device=args.device,
    )
    seconds: dict[str, list[float]] = {way: [] for way in args.ways}
    memory: dict[str, int] = {}
    drawn: dict[str, torch.Tensor] = {}
    for way in {"original", "ours"} & set(args.ways):  # what is compiled or loaded at the first use
        WAYS[way](janus, ids, argparse.Namespace(**vars(args) | {"codes": 8}))
    for turn in range(args.repeat):
        for way in args.ways if turn % 2 == 0 else reversed(args.ways):
            peak_memory = watch(args.device)
            start = clock(args.device)
            with console.status(f"batch {batch}, {way}, {turn + 1} of {args.repeat}"):
                drawn[way] = WAYS[way](janus, ids, args)
            seconds[way].append(clock(args.device) - start)
            memory[way] = max(memory.get(way, 0), peak_memory())
    row: dict = {"batch": batch, "seconds": seconds, "peak_memory": memory}
    row["images_per_second"] = {way: batch / median(s) for way, s in seconds.items()}
    least = bound(janus, batch, ids.shape[1], args, bandwidth, peak)
    row["of_bound"] = least / median(seconds["ours"])
    for way in args.ways:
        if way == "ours":
            continue
        ratios = sorted(a / b for a, b in zip(seconds[way], seconds["ours"], strict=True))
        row[f"vs_{way}"], row[f"vs_{way}_spread"] = median(ratios), [ratios[0], ratios[-1]]
        row[f"equal_{way}"] = (drawn[way] == drawn["ours"]).float().mean().item()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--size", choices=SIZES, help="Janus-Pro's own sizes instead of --layers and --width"
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--codes", type=int, default=576, help="codes an image, a square number")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--group", type=int, default=1, help="so many images of every prompt")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console()
    janus = new_janus(args)
    bandwidth, peak = machine(args)
    with torch.inference_mode():
        start = clock(args.device)
        janus.to_images(torch.zeros(1, args.codes, dtype=torch.long, device=args.device))
        picture = clock(args.device) - start
    result: dict = {
        "rows": [],
        "machine": {
            "name": torch.cuda.get_device_name()
            if args.device != "cpu"
            else platform.processor() or platform.machine(),
            "bytes_per_second": bandwidth,
            "operations_per_second": peak,
            "seconds_a_picture": picture,
        },
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "parameters": sum(p.numel() for p in janus.net.parameters()),
        "versions": versions(),
    }
    for batch in args.batch:
        row = compare(janus, batch, args, bandwidth, peak, console)
        row["first_image"] = {way: min(s) + picture for way, s in row["seconds"].items()}
        result["rows"].append(row)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.json, result)
    table = Table(title=f"bandwidth {bandwidth / 1e9:.0f} GB/s, peak {peak / 1e9:.0f} Gflop/s")
    for name in (
        "batch",
        *(f"images/s {w}" for w in args.ways),
        "vs original",
        "vs transformers",
        "of bound",
        "equal codes",
    ):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        versus = [
            f"{row[f'vs_{w}']:.2f} [{row[f'vs_{w}_spread'][0]:.2f}, {row[f'vs_{w}_spread'][1]:.2f}]"
            if f"vs_{w}" in row
            else ""
            for w in ("original", "transformers")
        ]
        equal = [f"{row[k]:.4f}" for k in row if k.startswith("equal_")]
        speeds = [f"{row['images_per_second'][w]:.4f}" for w in args.ways]
        table.add_row(
            str(row["batch"]), *speeds, *versus, f"{row['of_bound']:.2f}", " ".join(equal)
        )
    console.print(table)


if __name__ == "__main__":
    main()
