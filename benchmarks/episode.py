r"""Whole introspections, two ways in one run: as the public script does it, and by this engine,
half of the verdicts being Yes.

    python benchmarks/episode.py --device cpu --layers 12 --width 768 --episodes 16 --rounds 3 \
        --json out/episode.json
    python benchmarks/episode.py --device cuda --size 1b --dtype bfloat16 --episodes 64 --rounds 3 \
        --json out/episode.json

The public way redraws every image, also those judged Yes; begins every turn with an empty cache
that grows; encodes every image again. Ours redraws what was judged No and goes on from what was
computed. The two image encoders are small here: both ways use them alike, but the public one more
often.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from rich.console import Console

from decode import SIZES, grown, new_janus, texts
from measuring import clock, settings_of, watch, write_result
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.io import versions
from secondlook.models.janus.model import Janus
from secondlook.models.janus.segments import assemble
from secondlook.types import Prompt


@dataclass
class History:
    """What an episode of the public way has so far."""

    prompt: str
    images: list = field(default_factory=list)
    codes: list[tuple[int, ...]] = field(default_factory=list)
    reasons: list[tuple[int, ...]] = field(default_factory=list)

    def drawing_segments(self, template) -> tuple:
        """What the next image is drawn from."""
        if not self.codes:
            return template.draw(self.prompt)
        return template.redraw(self.prompt, self.codes, self.reasons)


@torch.inference_mode()
def public(janus: Janus, template, prompts: list[str], args) -> None:
    """Draw, judge, and draw again, whatever the verdict was."""
    histories = [History(prompt) for prompt in prompts]
    for _ in range(args.rounds):
        rows = []  # of each prompt the conditional one and the unconditional one
        for history in histories:
            segments = history.drawing_segments(template)
            rows += [segments, template.unconditional(segments)]
        drawn = grown(janus, assemble(janus, rows).embeds, args.codes, args.guidance)
        images = janus.to_images(drawn)
        # the public script encodes what it has just decoded
        encoded = janus.to_codes(images).tolist()
        for i, history in enumerate(histories):
            history.images.append(images[i])
            history.codes.append(tuple(encoded[i]))
        judged = [template.judge(each.prompt, each.images, each.reasons) for each in histories]
        reasons = written(janus, assemble(janus, judged).embeds, args.reason)
        for history, reason in zip(histories, reasons, strict=True):
            history.reasons.append(tuple(reason))


def written(janus: Janus, embeds: torch.Tensor, steps: int) -> list[list[int]]:
    """Greedy tokens of verdicts with their reasons, until all have ended, at most ``steps``."""
    cache, tokens = None, []
    ended = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
    for _ in range(steps):
        out = janus.net.model.language_model(
            inputs_embeds=embeds, use_cache=True, past_key_values=cache
        )
        cache = out.past_key_values
        tokens.append(janus.text_logits(out.last_hidden_state[:, -1]).argmax(-1))
        ended |= tokens[-1] == janus.tokenizer.eos_token_id
        if bool(ended.all()):
            break
        embeds = janus.embed_text(tokens[-1][:, None])
    return torch.stack(tokens, 1).tolist()


def ours(janus: Janus, prompts: list[str], args):
    engine = Engine(janus, batch=len(prompts))
    sampling = SamplingConfig(args.guidance, 1.0, 0, 0, args.reason)
    seeds = list(range(len(prompts)))
    return run_episodes(engine, [Prompt(text) for text in prompts], seeds, args.rounds, sampling)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--codes", type=int, default=576)
    parser.add_argument(
        "--reason", type=int, default=24, help="most tokens of a verdict with its reason"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    console, janus = Console(), new_janus(args, small_encoders=True)
    janus.history = "codes"
    template = Engine(janus).template
    with torch.no_grad():  # every verdict is Yes with the probability one half
        head = janus.net.lm_head.weight
        head[template.no] = head[template.yes]
    prompts = texts(args.episodes)
    seconds: dict[str, list[float]] = {"public": [], "ours": []}
    memory = {"public": 0, "ours": 0}
    for turn in range(args.repeat):
        for way in ("public", "ours") if turn % 2 == 0 else ("ours", "public"):
            peak, start = watch(args.device), clock(args.device)
            with console.status(f"{way}, {turn + 1} of {args.repeat}"):
                if way == "public":
                    public(janus, template, prompts, args)
                else:
                    episodes = ours(janus, prompts, args)
            seconds[way].append(clock(args.device) - start)
            memory[way] = max(memory[way], peak())
    ratios = sorted(a / b for a, b in zip(seconds["public"], seconds["ours"], strict=True))
    verdicts = [each.yes for episode in episodes for each in episode.rounds]
    result = {
        "vs_public": median(ratios),
        "vs_public_spread": [ratios[0], ratios[-1]],
        "seconds": seconds,
        "peak_memory": memory,
        "images": len(verdicts),
        "images_public": args.episodes * args.rounds,
        "yes_rate": sum(verdicts) / len(verdicts),
        "settings": settings_of(args),
        "versions": versions(),
    }
    took = {way: min(times) for way, times in seconds.items()}
    console.print(
        f"{args.episodes} episodes, up to {args.rounds} rounds, {result['yes_rate']:.2f} of the "
        "verdicts Yes\n"
        f"public {took['public']:.1f} s for {result['images_public']} images, ours "
        f"{took['ours']:.1f} s for {len(verdicts)}: "
        f"{result['vs_public']:.2f} times [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
    )
    write_result(args.json, result)


if __name__ == "__main__":
    main()
