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

from measuring import clock, settings_of, watch, write_result
from secondlook.engine.engine import Engine
from secondlook.io import versions
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
        token_ids = []
        while text:
            word = next((w for w in WORDS if text.startswith(w)), text[0])
            token_ids.append(self.ids.get(word, len(WORDS)))
            text = text[len(word) :]
        return {"input_ids": token_ids}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(WORDS[i] for i in ids if len(SPECIALS) <= i < len(WORDS))


def new_janus(args, small_encoders: bool = False) -> Janus:
    """Random weights. The seeing encoder is small, for drawing does not use it; with
    ``small_encoders`` the VQ is, too."""
    if args.size:
        layers, width, inner, heads = SIZES[args.size]
    else:
        layers, width = args.layers, args.width
        inner, heads = width * 8 // 3 // 64 * 64, width // 64  # as Llama has them
    side = round(args.codes**0.5)  # an image is side x side codes, of 16 x 16 pixels each
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
    # varied codes, no ties
    torch.nn.init.normal_(net.model.generation_head.vision_head.weight, std=1.0)
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
    rows = ids.repeat_interleave(2, 0)  # (2 samples, tokens)
    rows[1::2, 1:-1] = janus.tokenizer.pad_token_id  # all but the first and the last token
    return grown(janus, janus.embed_text(rows), args.codes, args.guidance)


def grown(janus: Janus, embeds: torch.Tensor, codes: int, guidance: float) -> torch.Tensor:
    """The published loop: a cache that grows, the head on every row, then the mixing; greedy."""
    net, cache, drawn_codes = janus.net, None, []
    for _ in range(codes):
        out = net.model.language_model(inputs_embeds=embeds, use_cache=True, past_key_values=cache)
        cache = out.past_key_values
        logits = net.model.generation_head(out.last_hidden_state[:, -1])  # (2 samples, vocabulary)
        cond, uncond = logits[::2], logits[1::2]
        mixed = uncond + guidance * (cond - uncond)
        drawn_codes.append(torch.softmax(mixed, -1).argmax(-1))  # (samples,)
        embeds = janus.embed_codes(drawn_codes[-1].repeat_interleave(2)[:, None])
    return torch.stack(drawn_codes, 1)  # (samples, codes)


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
    return torch.tensor([turn.tokens for turn in turns], device=ids.device)


def texts(n: int, group: int = 1) -> list[str]:
    """Prompts, ``group`` in a row the same; of equal length, for the original loop has no
    padding."""
    prompts = []
    for i in range(n):
        tens, ones = divmod(i // group, 26)
        prompts.append(f"a photo of {chr(ord('a') + ones)}{chr(ord('a') + tens)}")
    return prompts


def machine(args) -> tuple[float, float]:
    """Bytes a second read and operations a second multiplied, the best of five."""
    dtype, on_cpu = getattr(torch, args.dtype), args.device == "cpu"
    vector = torch.ones(2**28 if on_cpu else 2**31, dtype=dtype, device=args.device)
    side = 2048 if on_cpu else 8192
    square = torch.randn(side, side, dtype=dtype, device=args.device)
    read_seconds, multiply_seconds = [], []
    for _ in range(5):
        start = clock(args.device)
        if on_cpu:
            vector.sum()
        else:
            torch.add(vector, 1, out=vector)
        read_seconds.append(clock(args.device) - start)
        start = clock(args.device)
        square @ square
        multiply_seconds.append(clock(args.device) - start)
    moved_bytes = vector.nbytes * (1 if on_cpu else 2)  # add writes as much as it reads
    return moved_bytes / min(read_seconds), 2 * side**3 / min(multiply_seconds)


def bound(janus: Janus, batch: int, prompt: int, args, bandwidth: float, peak: float) -> float:
    """Seconds that drawing ``batch`` images takes at least."""
    config, item_size = janus.net.config.text_config, janus.net.lm_head.weight.element_size()
    head = janus.net.model.generation_head
    layer_weights = sum(p.numel() for p in janus.net.model.language_model.layers.parameters())
    head_weights = sum(p.numel() for p in head.parameters())
    num_rows = 2 * batch  # each image's conditional and unconditional one
    seconds = 0.0
    for step in range(args.codes):
        # keys and values of all positions so far, in every layer
        cached = 2 * num_rows * (prompt + step) * config.hidden_size * config.num_hidden_layers
        moved_bytes = item_size * (layer_weights + head_weights + cached)
        operations = (
            2 * num_rows * (layer_weights + head.proj_out.weight.numel())
            + 2 * batch * head.vision_head.weight.numel()
            + 2 * cached
        )
        seconds += max(moved_bytes / bandwidth, operations / peak)
    return seconds


WAYS = {"original": original, "transformers": transformers, "ours": ours}


def compare(
    janus: Janus, batch: int, args, bandwidth: float, peak: float, console: Console
) -> dict:
    template = Engine(janus).template
    prompt_ids = []
    for text in texts(batch, args.group):
        prompt_ids.append([token for segment in template.draw(text) for token in segment.ids])
    ids = torch.tensor(prompt_ids, device=args.device)  # (batch, tokens)
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
    row["images_per_second"] = {way: batch / median(times) for way, times in seconds.items()}
    least_seconds = bound(janus, batch, ids.shape[1], args, bandwidth, peak)
    row["of_bound"] = least_seconds / median(seconds["ours"])
    for way in args.ways:
        if way == "ours":
            continue
        # turn by turn, so that both ways met the same machine
        ratios = sorted(a / b for a, b in zip(seconds[way], seconds["ours"], strict=True))
        row[f"vs_{way}"], row[f"vs_{way}_spread"] = median(ratios), [ratios[0], ratios[-1]]
        row[f"equal_{way}"] = (drawn[way] == drawn["ours"]).float().mean().item()
    return row


def parse_arguments() -> argparse.Namespace:
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
    return parser.parse_args()


def ratio_text(row: dict, way: str) -> str:
    """How many times as fast as ``way`` this engine was, with the spread; "" where it did not
    run."""
    if f"vs_{way}" not in row:
        return ""
    low, high = row[f"vs_{way}_spread"]
    return f"{row[f'vs_{way}']:.2f} [{low:.2f}, {high:.2f}]"


def result_table(rows: list[dict], ways: list[str], title: str) -> Table:
    """A line for each batch."""
    table = Table(title=title)
    speed_columns = [f"images/s {way}" for way in ways]
    others = ("vs original", "vs transformers", "of bound", "equal codes")
    for name in ("batch", *speed_columns, *others):
        table.add_column(name, justify="right")
    for row in rows:
        speeds = [f"{row['images_per_second'][way]:.4f}" for way in ways]
        equal_shares = [f"{row[key]:.4f}" for key in row if key.startswith("equal_")]
        table.add_row(
            str(row["batch"]),
            *speeds,
            ratio_text(row, "original"),
            ratio_text(row, "transformers"),
            f"{row['of_bound']:.2f}",
            " ".join(equal_shares),
        )
    return table


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    console = Console()
    janus = new_janus(args)
    bandwidth, peak = machine(args)
    with torch.inference_mode():
        start = clock(args.device)
        janus.to_images(torch.zeros(1, args.codes, dtype=torch.long, device=args.device))
        picture_seconds = clock(args.device) - start
    if args.device == "cpu":
        machine_name = platform.processor() or platform.machine()
    else:
        machine_name = torch.cuda.get_device_name()
    result: dict = {
        "rows": [],
        "machine": {
            "name": machine_name,
            "bytes_per_second": bandwidth,
            "operations_per_second": peak,
            "seconds_a_picture": picture_seconds,
        },
        "settings": settings_of(args),
        "parameters": sum(p.numel() for p in janus.net.parameters()),
        "versions": versions(),
    }
    for batch in args.batch:
        row = compare(janus, batch, args, bandwidth, peak, console)
        row["first_image"] = {way: min(s) + picture_seconds for way, s in row["seconds"].items()}
        result["rows"].append(row)
        write_result(args.json, result)  # after each batch: the next may not fit
    title = f"bandwidth {bandwidth / 1e9:.0f} GB/s, peak {peak / 1e9:.0f} Gflop/s"
    console.print(result_table(result["rows"], args.ways, title))


if __name__ == "__main__":
    main()
