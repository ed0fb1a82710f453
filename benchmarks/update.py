"""The update of RL, two ways in one run: as the public code computes it, and as it is here. Forward
and backward of one micro-batch of drawing turns (guidance 5) and one of judging turns (a seen image
and a short answer each); no optimizer.

    python benchmarks/update.py --device cpu --json out/update.json
    python benchmarks/update.py --device cuda --size 1b --dtype bfloat16 --json out/update.json

The public way pads the rows to one length, runs the head over every position of every row (drawing:
of both twins, mixed after it) and takes the log-softmax of everything. Losses and gradients must be
equal. Memory is the peak beyond weights and gradients.
"""

import argparse
import ctypes
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from decode import SIZES, new_janus, texts
from measuring import clock, settings_of, watch, write_result
from secondlook.engine.engine import Engine
from secondlook.io import versions
from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.models.janus.segments import assemble, length
from secondlook.train.activation_checkpointing import activation_checkpointing
from secondlook.train.optim import freeze
from secondlook.train.rl.losses import policy_loss
from secondlook.train.rl.micro_batches import pack
from secondlook.train.rl.trajectory import TrajectoryTurn
from secondlook.train.rl.turn_weights import total_weight, weigh
from secondlook.types import ImageCodes, SamplingParams, TokenIds, Turn


def turns(janus: Janus, kind: str, n: int, args) -> list[Turn]:
    """Turns that were not sampled: any tokens will do."""
    template, rng = Engine(janus).template, np.random.default_rng(0)
    made_turns = []
    for i, text in enumerate(texts(n)):
        if kind == "image":
            turn_kind, sampling_params = "draw", SamplingParams("code", args.guidance)
            tokens = tuple(rng.integers(0, 16384, args.codes).tolist())
            segments = template.draw(text)
        else:
            turn_kind, sampling_params = "judge", SamplingParams("text")
            shape = (janus.image_size, janus.image_size, 3)
            picture = Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8))
            num_tokens = int(rng.integers(args.reason // 2, args.reason + 1))
            tokens = (template.yes, *rng.integers(10, 100, num_tokens - 1).tolist())
            segments = template.judge(text, [picture], [])
        logprobs = (-1.0,) * len(tokens)
        made_turns.append(Turn(turn_kind, segments, tokens, logprobs, sampling_params, i))
    return made_turns


def public(janus: Janus, template, turns: list[Turn]) -> torch.Tensor:
    """Log-probabilities of all turns' tokens, one turn behind another."""
    sampling_params, n = turns[0].sampling_params, len(turns)
    is_drawing = sampling_params.head == "code"
    rows, uncond_rows = [], []
    for turn in turns:
        sampled = ImageCodes(turn.tokens) if is_drawing else TokenIds(turn.tokens)
        rows.append((*turn.segments, sampled))
        if is_drawing:
            uncond_rows.append((*template.unconditional(turn.segments), sampled))
    hidden = janus.net.model.language_model(
        inputs_embeds=assemble(janus, rows + uncond_rows).embeds, use_cache=False
    ).last_hidden_state  # (rows, padded length, width)
    logits = (janus.code_logits(hidden) if is_drawing else janus.text_logits(hidden)).float()
    if is_drawing:
        logits = logits[n:] + sampling_params.guidance * (logits[:n] - logits[n:])
    log_probs = logits[:, :-1].log_softmax(-1)
    token_log_probs = []
    for i, turn in enumerate(turns):
        start = length(turn.segments, janus.n_patches) - 1  # the last given token foretells
        tokens = torch.tensor(turn.tokens, device=log_probs.device)
        turn_log_probs = log_probs[i, start : start + len(tokens)]  # (tokens, vocabulary)
        token_log_probs.append(turn_log_probs.gather(-1, tokens[:, None]).squeeze(-1))
    return torch.cat(token_log_probs)


def ours(janus: Janus, template, turns: list[Turn]) -> torch.Tensor:
    return sampling.score(janus, template, turns)


def update(way: Callable, janus: Janus, template, turns: list[Turn]) -> tuple[float, torch.Tensor]:
    """Loss and log-probabilities; gradients are left in the weights."""
    learned = []
    for i, turn in enumerate(turns):
        learned.append(TrajectoryTurn(turn.kind, 0.5, turn, advantage=1.0 if i % 2 else -1.0))
        weigh(learned[-1], "turn")
    [batch] = pack(learned, len(learned), janus.device)
    logp = way(janus, template, batch.turns)
    out = policy_loss(
        logp,
        logp.detach() - 0.05,
        logp.detach() + 0.05,
        batch.advantages,
        batch.weights,
        total_weight(learned),
    )
    out.loss.backward()
    return float(out.loss.detach()), logp.detach()


M_MMAP_THRESHOLD = -3


def settle(device: str, exactly: bool) -> None:
    """Give freed memory back, so that a peak is seen; ``exactly``: from now on also what is freed
    in between, at a cost."""
    if device == "cpu":
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, 2**16 if exactly else 2**25)
    else:
        torch.cuda.empty_cache()


def distance(measured: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """|measured - wanted| / |wanted| over all parameters together."""
    errors = [a - b for a, b in zip(measured, wanted, strict=True)]
    return float(norm_of(errors) / norm_of(wanted))


def norm_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Of all numbers of several tensors."""
    return torch.stack([tensor.double().norm() for tensor in tensors]).norm()


def compare(janus: Janus, kind: str, n: int, args, console: Console) -> dict:
    template, asked = Engine(janus).template, turns(janus, kind, n, args)
    parameters = [p for p in janus.net.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    ways = {"public": public, "ours": ours}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, int] = {}
    losses_and_logprobs: dict[str, tuple[float, torch.Tensor]] = {}
    gradients: dict[str, list[torch.Tensor]] = {}
    for turn in range(args.repeat + 1):  # the first is for memory and is not timed
        for way in ways if turn % 2 else reversed(ways):
            for p in parameters:
                p.grad.zero_()
            settle(args.device, exactly=not turn)
            peak, start = watch(args.device), clock(args.device)
            how = args.checkpointing if way == "ours" else "none"
            with (
                console.status(f"{kind}, {way}, {turn} of {args.repeat}"),
                activation_checkpointing(janus, how),
            ):
                losses_and_logprobs[way] = update(ways[way], janus, template, asked)
            if turn:
                seconds[way].append(clock(args.device) - start)
            else:
                memory[way] = peak()
                gradients[way] = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    ratios = sorted(a / b for a, b in zip(seconds["public"], seconds["ours"], strict=True))
    logprob_difference = losses_and_logprobs["ours"][1] - losses_and_logprobs["public"][1]
    return {
        "turns": n,
        "tokens": sum(len(t.tokens) for t in asked),
        "positions": sum(length(t.segments, janus.n_patches) + len(t.tokens) for t in asked),
        "speedup": median(ratios),
        "speedup_spread": [ratios[0], ratios[-1]],
        "memory_ratio": memory["ours"] / memory["public"],
        "seconds": seconds,
        "peak_memory": memory,
        "largest_logprob_difference": float(logprob_difference.abs().max()),
        "gradient_difference": distance(gradients["ours"], gradients["public"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--vocabulary", type=int, default=102400)
    parser.add_argument("--codes", type=int, default=576)
    parser.add_argument("--reason", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--checkpointing",
        choices=("none", "selective", "full"),
        default="selective",
        help="of ours",
    )
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console, janus = Console(), new_janus(args, small_encoders=True)
    freeze(janus)
    result = {kind: compare(janus, kind, args.turns, args, console) for kind in ("image", "text")}
    for kind, row in result.items():
        console.print(
            f"{kind}: {row['speedup']:.2f} times as fast [{row['speedup_spread'][0]:.2f}, "
            f"{row['speedup_spread'][1]:.2f}], "
            f"{row['memory_ratio']:.2f} of the memory ({row['peak_memory']['public'] / 1e9:.2f} -> "
            f"{row['peak_memory']['ours'] / 1e9:.2f} GB); log-probabilities differ by "
            f"{row['largest_logprob_difference']:.1e}, "
            f"gradients by {row['gradient_difference']:.1e}"
        )
    write_result(args.json, result | {"settings": settings_of(args), "versions": versions()})


if __name__ == "__main__":
    main()
