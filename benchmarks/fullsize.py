"""A checkpoint of Janus-Pro's full size with random weights, written in the original layout, loaded
and drawn with.

    python benchmarks/fullsize.py --size 1b --folder out/fullsize --json out/fullsize.json

Says how long loading and drawing one image took and the most memory they needed, as a multiple of
the model.
"""

import argparse
import json
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import JanusForConditionalGeneration
from transformers.initialization import no_init_weights

from decode import SIZES
from measuring import settings_of, watch, write_result
from secondlook.engine.engine import Engine
from secondlook.io import versions, write_json
from secondlook.models.janus import convert
from secondlook.models.janus.model import Janus
from secondlook.types import Request, SamplingParams

TINY = Path(__file__).parents[1] / "tests" / "golden" / "official_tiny"
SHARD = 2**31
"""Bytes from which on a weight file is written."""


def config(size: str) -> dict:
    """The tiny checkpoint's original config.json at full size."""
    layers, width, inner, heads = SIZES[size]
    tiny_config = json.loads((TINY / "config.json").read_text())
    tiny_config["language_config"] |= {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": 102400,
        "max_position_embeddings": 16384,
    }
    tiny_config["vision_config"]["params"]["select_layer"] = -1
    for part, width_key in (
        ("aligner", "n_embed"),
        ("gen_aligner", "n_embed"),
        ("gen_head", "n_embed"),
        ("gen_head", "image_token_embed"),
    ):
        tiny_config[f"{part}_config"]["params"][width_key] = width
    return tiny_config | {"torch_dtype": "bfloat16"}


def write(folder: Path, size: str) -> None:
    """That config with random weights in bfloat16, in shards, and the tiny checkpoint's
    tokenizer."""
    original_config = config(size)
    shutil.copytree(TINY / "tokenizer", folder)
    write_json(folder / "config.json", original_config)
    with torch.device("meta"), no_init_weights():
        net = JanusForConditionalGeneration._from_config(convert.config_of(original_config, 835))
    torch.manual_seed(0)
    file_of_weight: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        file_name = f"model-{len(set(file_of_weight.values())) + 1:05}.safetensors"
        save_file(shard, folder / file_name)
        file_of_weight.update(dict.fromkeys(shard, file_name))
        shard.clear()

    for name, tensor in convert.to_original(net.state_dict().items()):
        is_norm = tensor.ndim == 1 and name.endswith("weight")
        if is_norm:
            shard[name] = torch.ones(tensor.shape, dtype=torch.bfloat16)
        else:
            shard[name] = torch.randn(tensor.shape).mul(0.02).bfloat16()
        if sum(weight.nbytes for weight in shard.values()) > SHARD:
            flush()
    flush()
    write_json(folder / "model.safetensors.index.json", {"weight_map": file_of_weight})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("out/fullsize"),
        help="kept, and used again when it is there",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.folder.exists():
        # in a process of its own: memory that writing has left behind would hide what loading needs
        writer = get_context("spawn").Process(target=write, args=(args.folder, args.size))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit(f"the checkpoint could not be written to {args.folder}")
    peak, start = watch("cpu"), time.perf_counter()
    janus = Janus.load(args.folder, args.device, getattr(torch, args.dtype))
    load_seconds, load_peak = time.perf_counter() - start, peak()
    model_bytes = sum(weight.nbytes for weight in janus.net.state_dict().values())
    engine = Engine(janus)
    peak, start = watch(args.device), time.perf_counter()
    segments = engine.template.draw("a photo of a cat below a cup")
    [turn] = engine.draw(
        [Request("draw", segments, 0)], SamplingParams("code", guidance=5.0, top_k=4096)
    )
    draw_seconds = time.perf_counter() - start
    start = time.perf_counter()
    engine.pictures([turn.tokens])
    result = {
        "parameters": sum(p.numel() for p in janus.net.parameters()),
        "model_bytes": model_bytes,
        "load_seconds": load_seconds,
        "load_peak_over_model": load_peak / model_bytes,
        "draw_seconds": draw_seconds,
        "draw_peak_bytes": peak(),
        "picture_seconds": time.perf_counter() - start,
        "different_codes": len(set(turn.tokens)),
        "settings": settings_of(args),
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))
    write_result(args.json, result)


if __name__ == "__main__":
    main()
