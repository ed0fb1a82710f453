"""Whole files of every kind, what reads each of them, and what says whether what was read is right
(``fuzz_checks``)."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import JanusConfig, JanusForConditionalGeneration

from fuzz_checks import (
    config_values,
    differ,
    each_row_is_used,
    pairs_parquet,
    pairs_rows,
    picture,
    prompts_rows,
    prompts_text,
    published_rows,
    sanity_rows,
    shard_rows,
)
from mutate import mutate
from secondlook import config as configs
from secondlook.cli.show import show
from secondlook.data import decontaminate
from secondlook.data.build_config import BuildConfig
from secondlook.data.labelled_images import read_pairs
from secondlook.data.prompts import read_prompts
from secondlook.data.sanity_pairs import read_sanity_pairs
from secondlook.data.sft_dataset import Pool
from secondlook.errors import InputError
from secondlook.io import png, read_image, read_json, stored_rows
from secondlook.llm.answer_store import Answers
from secondlook.mini.pretrain.base_model import BaseConfig
from secondlook.models.janus import checkpoint
from secondlook.models.shipped import locate
from secondlook.train.job_config import BasicRuntimeConfig
from secondlook.train.rl.config import RLConfig
from secondlook.train.sft_config import SFTConfig
from secondlook.train.trainer import Trainer

ROOT = Path(__file__).parents[1]


@dataclass
class Target:
    """A file in a folder, and how the folder is read."""

    name: str
    template: Path
    """The folder with everything that the file needs beside it."""
    file: str
    read: Callable[[Path], Any]
    """The folder, with the file in it, to what is read of it."""
    check: Callable[[bytes, Any], str]
    """The file and what was read of it, to what is wrong with that, or ""."""
    json_lines: bool | None = None
    """It is JSON, of one value (False) or one a line (True)."""
    names: tuple[str, ...] = ()
    """What a refusal may name instead of the file: a setting."""
    rebuilt: Callable[[random.Random], bytes] | None = None
    """A whole file of its kind with other contents."""

    @property
    def data(self) -> bytes:
        return (self.template / self.file).read_bytes()


def opened(folder: Path, name: str) -> list:
    """Pairs with their pictures; one that cannot be read is named when it is opened."""
    pairs = read_pairs(folder / name)
    for pair in pairs:
        try:
            pair.open()
            pair.asked()
        except InputError as error:
            if "\n" in str(error):
                raise
    return pairs


def checkpoint_loaded(folder: Path) -> Any:
    net, processor = checkpoint.load(folder)
    weights = load_file(folder / "model.safetensors")
    same = [
        name
        for name, tensor in net.state_dict().items()
        if not torch.equal(tensor, weights[name].to(tensor.dtype))
    ]
    return net, processor, same, weights.keys() - net.state_dict().keys()


def checkpoint_right(data: bytes, found: Any) -> str:
    net, processor, other, unread = found
    if other or unread:
        return f"weights differ or are left out: {[*other, *unread][:3]}"
    ids = processor.tokenizer.get_vocab().values()
    return "" if max(ids) < net.config.text_config.vocab_size else "ids beyond the vocabulary"


class Counted:
    """A job's state of one tensor."""

    def __init__(self) -> None:
        self.tensor, self.plain = torch.zeros(3), 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"tensor": self.tensor, "plain": self.plain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensor, self.plain = state["tensor"], state["plain"]


@dataclass
class Tiny:
    model: str = "mini"
    steps: int = 4
    runtime: BasicRuntimeConfig = field(default_factory=BasicRuntimeConfig)


def resumed(folder: Path) -> Any:
    state = Counted()
    run = Trainer(folder, Tiny(), {"part": state}, weights="abc")
    return (
        run.step,
        state.plain,
        stored_rows(folder / "metrics.jsonl"),
        (folder / "metrics.jsonl").read_bytes(),
    )


def resumed_right(data: bytes, found: Any) -> str:
    step, plain, rows, metrics = found
    if (step, plain) not in ((1, 1.0), (2, 2.0)):
        return f"it goes on at {step} with {plain}"
    return differ("metrics", len(rows), metrics.count(b"\n"))


def shown(folder: Path) -> None:
    show(folder)


def unchecked(data: bytes, found: Any) -> str:
    return ""


def answers_read(folder: Path) -> list[Any]:
    answers = Answers(folder / "answers.sqlite")
    found = [answers.get(key) for key in ("a", "b", "c")]
    answers.put("d", 0.5)
    return [*found, answers.get("d")]


def answers_right(data: bytes, found: list[Any]) -> str:
    bad = [value for value in found if isinstance(value, float) and not math.isfinite(value)]
    return differ("what was put", found[-1], 0.5) or (
        f"{bad[0]} is no finite number" if bad else ""
    )


def odd_parquet(columns: dict[str, list]) -> Callable[[random.Random], bytes]:
    """A Parquet file of these columns, one of which is missing or holds, once or everywhere,
    something else."""

    def build(rng: random.Random) -> bytes:
        table = {name: list(values) for name, values in columns.items()}
        name = rng.choice(list(table))
        n, kind = len(table[name]), rng.random()
        if kind < 0.15:
            del table[name]
        elif kind < 0.6:
            table[name][rng.randrange(n)] = rng.choice([None, *table[name]])
        else:
            table[name] = [
                rng.choice(
                    [
                        None,
                        5,
                        math.nan,
                        math.inf,
                        -1.0,
                        2.0,
                        b"",
                        "",
                        "x",
                        True,
                        ["x"],
                        {"bytes": None},
                    ]
                )
            ] * n
        buffer = io.BytesIO()
        pq.write_table(pa.table(table), buffer)
        return buffer.getvalue()

    return build


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def tiny_checkpoint(folder: Path) -> None:
    """A Janus of a few thousand weights with the miniature's tokenizer."""
    mini = Path(locate("mini"))
    folder.mkdir(parents=True)
    for path in mini.glob("*.json"):
        shutil.copy(path, folder)
    said = read_json(mini / "config.json", dict)
    said["text_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    said["text_config"] |= {"num_key_value_heads": 2, "head_dim": 8}
    said["vision_config"] |= {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    said["vq_config"] |= {
        "base_channels": 32,
        "latent_channels": 32,
        "num_embeddings": 16,
        "embed_dim": 8,
    }
    said["vq_config"] |= {
        "projection_dim": 16,
        "image_token_embed_dim": 16,
        "channel_multiplier": [1, 1, 1, 1],
    }
    torch.manual_seed(0)
    JanusForConditionalGeneration(JanusConfig.from_dict(said)).save_pretrained(folder)
    shutil.copy(mini / "generation_config.json", folder)


def in_folder(folder: Path, colours: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, colour in colours.items():
        (folder / name).write_bytes(png(Image.new("RGB", (12, 12), colour)))
    return folder


TEXT = ["a photo of a red star", "ein Bild von Bäumen 🌲", "two cats, and “quotes”"]


def targets(home: Path) -> list[Target]:
    """All of them, their whole files written under ``home``."""
    return [*_pictures(home), *_lists(home), *_training(home), *_checkpoints(home), *_own(home)]


def _pictures(home: Path) -> list[Target]:
    found = []
    image = Image.radial_gradient("L").resize((40, 30))
    kinds = {
        "a.png": image.convert("RGB"),
        "a.jpg": image.convert("RGB"),
        "a.webp": image.convert("RGBA"),
        "a.gif": image,
    }
    kinds |= {"a.tif": image.convert("I;16"), "p.png": image.convert("P")}
    for name, picture_of in kinds.items():
        folder = in_folder(home / f"pictures-{name}", {})
        exif = Image.Exif()
        exif[0x0112] = 6
        picture_of.save(folder / name, **({"exif": exif} if name == "a.jpg" else {}))
        found.append(
            Target(
                f"pictures/{name}", folder, name, lambda f, name=name: read_image(f / name), picture
            )
        )
    return found


def _lists(home: Path) -> list[Target]:
    folder = in_folder(home / "lists", {"right.png": "red", "wrong.png": "blue"})
    files = {
        "prompts.txt": "\n".join(TEXT) + "\n",
        "prompts.tsv": "prompt\tn\n" + "".join(f"{p}\t{i}\n" for i, p in enumerate(TEXT)),
        "prompts.csv": "prompt,n\n" + "".join(f'"{p}",{i}\n' for i, p in enumerate(TEXT)),
        "prompts.json": json.dumps(
            [{"prompt": p, "n": i} for i, p in enumerate(TEXT)], ensure_ascii=False
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_lines(folder / "prompts.jsonl", [{"prompt": p, "source": "right.png"} for p in TEXT])
    rows = [
        {"image": f"{n}.png", "prompt": TEXT[i], "good": n == "right"}
        for i, n in enumerate(("right", "wrong", "right"))
    ]
    write_lines(folder / "pairs.jsonl", rows)
    data = {name: (folder / name).read_bytes() for name in ("right.png", "wrong.png")}
    columns = {
        "image": [data[r["image"]] for r in rows],
        "prompt": TEXT,
        "good": [r["good"] for r in rows],
    }
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    found = [
        Target(
            "prompts/prompts.txt",
            folder,
            "prompts.txt",
            lambda f: read_prompts(f / "prompts.txt"),
            prompts_text,
        ),
        Target(
            "prompts/prompts.jsonl",
            folder,
            "prompts.jsonl",
            lambda f: read_prompts(f / "prompts.jsonl"),
            prompts_rows,
            True,
        ),
        Target(
            "pairs/pairs.jsonl",
            folder,
            "pairs.jsonl",
            lambda f: opened(f, "pairs.jsonl"),
            pairs_rows,
            True,
        ),
        Target(
            "pairs/pairs.parquet",
            folder,
            "pairs.parquet",
            lambda f: opened(f, "pairs.parquet"),
            pairs_parquet,
            rebuilt=odd_parquet(columns),
        ),
        Target(
            "sanity/pairs.jsonl",
            folder,
            "pairs.jsonl",
            lambda f: read_sanity_pairs(f / "pairs.jsonl"),
            sanity_rows,
            True,
        ),
    ]
    for kind, json_lines in {
        "txt": None,
        "jsonl": True,
        "json": False,
        "csv": None,
        "tsv": None,
    }.items():
        name = f"prompts.{kind}"
        read: Callable[[Path], Any] = lambda f, name=name: decontaminate.read(f / name)  # noqa: E731
        found.append(
            Target(f"overlap/{name}", folder, name, read, each_row_is_used(kind), json_lines)
        )
    return found


def _training(home: Path) -> list[Target]:
    found = []
    kinds: dict[str, type] = {
        "src/secondlook/recipes/7b/sft": SFTConfig,
        "src/secondlook/recipes/7b/ppo": RLConfig,
        "src/secondlook/recipes/1b/edit_grpo": RLConfig,
    }
    kinds |= {
        "src/secondlook/recipes/mini/data": BuildConfig,
        "src/secondlook/recipes/mini/base": BaseConfig,
        "tests/cases/judge": BuildConfig,
    }
    for path, kind in kinds.items():
        folder = in_folder(home / path.replace("/", "-"), {})
        shutil.copy(ROOT / f"{path}.toml", folder)
        name = f"{Path(path).name}.toml"

        def read(folder: Path, kind: Any = kind, name: str = name) -> Any:
            return configs.load(kind, folder / name, [])

        found.append(
            Target(f"toml/{name}", folder, name, read, config_values, names=("config: ", "judge: "))
        )
    folder = in_folder(home / "published", {"right.png": "red", "wrong.png": "blue"})
    pictures = [{"img_path": "right.png", "reason": "Yes, a star.", "prob": 0.95, "state": "x"}]
    pictures.append(
        {"img_path": "wrong.png", "reason": "No, it is blue.", "prob": 0.1, "state": "x"}
    )
    write_lines(
        folder / "data.jsonl",
        [{"promptid": i, "prompt": p, "data": pictures} for i, p in enumerate(TEXT)],
    )
    found.append(
        Target(
            "sft/data.jsonl",
            folder,
            "data.jsonl",
            lambda f: Pool(f / "data.jsonl"),
            published_rows,
            True,
        )
    )
    shards = in_folder(home / "shards", {})
    images = [
        {"bytes": (folder / p["img_path"]).read_bytes(), "path": None}
        for _ in TEXT
        for p in pictures
    ]
    columns = {
        "id": [f"{i}-{k}" for i in range(len(TEXT)) for k in range(2)],
        "prompt": [p for p in TEXT for _ in range(2)],
        "image": images,
        "score": [p["prob"] for _ in TEXT for p in pictures],
        "reason": [p["reason"] for _ in TEXT for p in pictures],
    }
    pq.write_table(pa.table(columns), shards / "images-000.parquet")
    build = odd_parquet(columns)
    found.append(
        Target(
            "sft/images-000.parquet", shards, "images-000.parquet", Pool, shard_rows, rebuilt=build
        )
    )
    return found


def _checkpoints(home: Path) -> list[Target]:
    folder = home / "checkpoint"
    tiny_checkpoint(folder)
    names = [
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    found = [
        Target(f"checkpoint/{n}", folder, n, checkpoint_loaded, checkpoint_right, False)
        for n in names
    ]
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]

    def other_header(rng: random.Random) -> bytes:
        text = mutate(json.dumps(header).encode(), rng, json_lines=False)
        long = (
            len(text)
            if rng.random() < 0.8
            else rng.choice([0, 1, len(text) + 1, 2**27, 2**63, 2**64 - 1])
        )
        return long.to_bytes(8, "little") + text + rest

    name = "model.safetensors"
    found.append(
        Target(
            f"checkpoint/{name}",
            folder,
            name,
            checkpoint_loaded,
            checkpoint_right,
            rebuilt=other_header,
        )
    )
    sharded = home / "sharded"
    shutil.copytree(folder, sharded)
    index = {
        "metadata": {},
        "weight_map": {n: "model-1.safetensors" for n in header if n != "__metadata__"},
    }
    (sharded / name).rename(sharded / "model-1.safetensors")
    (sharded / f"{name}.index.json").write_text(json.dumps(index))
    read: Callable[[Path], Any] = lambda f: (*checkpoint.load(f), [], [])  # noqa: E731
    found.append(
        Target(
            "checkpoint/index.json", sharded, f"{name}.index.json", read, checkpoint_right, False
        )
    )
    adapter = in_folder(home / "adapter", {})
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "mini"})
    )
    accepted: Callable[[bytes, Any], str] = lambda data, found: "an adapter was loaded"  # noqa: E731
    found.append(
        Target(
            "checkpoint/adapter_config.json",
            adapter,
            "adapter_config.json",
            checkpoint_loaded,
            accepted,
            False,
        )
    )
    return found


def _own(home: Path) -> list[Target]:
    folder = home / "run"
    state = Counted()
    run = Trainer(folder, Tiny(), {"part": state}, weights="abc")
    for step in (1, 2):
        run.step = step
        state.tensor, state.plain = torch.full((3,), float(step)), float(step)
        run.save()
    write_lines(
        folder / "metrics.jsonl", [{"step": s, "loss": 1 / s, "seconds": 0.5} for s in (1, 2)]
    )
    (folder / ".lock").unlink(missing_ok=True)
    files: dict[str, bool | None] = {
        "config.json": False,
        "origin.json": False,
        "metrics.jsonl": True,
    }
    files |= {f"states/step-00000002/{n}": None for n in (".metadata", "__0_0.distcp")}
    found = [
        Target(f"run/{name}", folder, name, resumed, resumed_right, lines)
        for name, lines in files.items()
    ]
    episode = in_folder(home / "episode", {})
    rounds = [
        {
            "image": "round-1.png",
            "yes": True,
            "p_yes": 0.9,
            "reason": "there is a star",
            "codes": [1, 2],
        }
    ]
    (episode / "episode.json").write_text(
        json.dumps({"prompt": TEXT[1], "seed": 0, "final": 0, "rounds": rounds})
    )
    found.append(Target("show/episode.json", episode, "episode.json", shown, unchecked, False))
    metrics = in_folder(home / "metrics", {})
    shutil.copy(folder / "metrics.jsonl", metrics)
    found.append(Target("show/metrics.jsonl", metrics, "metrics.jsonl", shown, unchecked, True))
    stored = in_folder(home / "answers", {})
    answers = Answers(stored / "answers.sqlite")
    for key, value in (("a", 0.75), ("b", "a red star"), ("c", ["Is it red?"])):
        answers.put(key, value)
    answers._db.close()
    found.append(
        Target("judge/answers.sqlite", stored, "answers.sqlite", answers_read, answers_right)
    )
    return found
