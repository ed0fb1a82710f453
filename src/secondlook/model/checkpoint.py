"""Checkpoint folders, in transformers' layout or the original one: found out from the files, checked whole before a weight is
read, loaded and converted a few tensors at a time.

Both layouts hold safetensors or pickles (`pytorch_model*.bin`, read with ``weights_only``), in one file or in shards with an
index. Every complaint is an InputError that names the file and the tensor.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessorPil,
    JanusProcessor,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights

from secondlook.files import writable_folder
from secondlook.model import convert
from secondlook.model.shipped import locate
from secondlook.types import InputError

AT_ONCE = 8
"""Tensors read before a file is opened anew: mapped pages count as memory until their file is closed."""
WHOLE = ("model.safetensors", "pytorch_model.bin")
IMAGE_TOKENS = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
SENTENCE_TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
}
Named = Iterable[tuple[str, Tensor]]


def fetch(model: str) -> Path:
    """The folder of a checkpoint: as given, or a hub id's snapshot (pickles only when it has no safetensors)."""
    if Path(model).is_dir():
        return Path(model)
    try:
        folder = Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            snapshot_download(model, allow_patterns=["*.bin"])
    except Exception as error:
        raise InputError(f"model: {model!r} could not be fetched from the hub: {_first_line(error)}") from error
    return folder


def load_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """The tokenizer alone of a shipped model, a folder or a hub id. Raises InputError."""
    return _tokenizer(fetch(locate(model)))


def at_hand(device: str | torch.device) -> torch.device:
    """The device. Raises InputError where torch does not find it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: {str(device)!r} is not at hand here; use cpu, or a device that torch finds") from error
    return torch.device(device)


def load(
    folder: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu", attention: str = "sdpa"
) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """Network and processor of a checkpoint folder. ``dtype`` None is the one it is stored in.

    Peak memory is the model and a few tensors. Raises InputError before any weight is read when files or tensors are
    missing, cut off, foreign or of another shape.
    """
    tokenizer = _tokenizer(folder)
    config, original = _config(folder, tokenizer)
    with no_init_weights(), at_hand(device):
        net = JanusForConditionalGeneration._from_config(
            config, dtype=dtype or config.dtype or torch.float32, attn_implementation=attention
        )
    wanted = net.state_dict()
    stored = _inventory(folder)
    _check(folder, stored, {name: tensor.shape for name, tensor in wanted.items()}, original)
    with torch.no_grad():
        for name, tensor in _renamed(_tensors(stored), original):
            wanted[name].copy_(tensor)
    net.generation_config = _generation(folder, tokenizer)
    return net.eval(), _processor(tokenizer, config)


def convert_checkpoint(source: Path, target: Path, shard_size: str = "5GB") -> str:
    """Write ``source`` in the other layout to the new folder ``target``, streaming; returns the layout written.

    Raises InputError as ``load`` does, or when ``target`` exists. Nothing is left behind by a failure.
    """
    if target.exists():
        raise InputError(f"out: {str(target)!r} exists; name a new folder")
    tokenizer = _tokenizer(source)
    config, original = _config(source, tokenizer)
    new_config = config if original else convert.original_config(config)
    with torch.device("meta"), no_init_weights():
        shapes = {k: v.shape for k, v in JanusForConditionalGeneration._from_config(config).state_dict().items()}
    stored = _inventory(source)
    _check(source, stored, shapes, original)
    other: Callable[[Named], Named] = (lambda named: _renamed(named, True)) if original else convert.to_original
    work = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    writable_folder(target.parent, claimed=False)
    try:
        work.mkdir()
        _write_shards(work, dict(other((k, t) for k, (_, t) in stored.items())), other(_tensors(stored)), shard_size)
        if isinstance(new_config, JanusConfig):
            new_config.architectures = ["JanusForConditionalGeneration"]
            new_config.save_pretrained(work)
            _processor(tokenizer, config).save_pretrained(work)
        else:
            _write(work / "config.json", new_config)
            _write(work / "preprocessor_config.json", convert.original_image_processor(config))
            _write(work / "processor_config.json", convert.original_processor(config))
            tokenizer.save_pretrained(work)
        _generation(source, tokenizer).save_pretrained(work)
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return "transformers" if original else "original"


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"model: {str(folder)!r} holds no tokenizer.json; a checkpoint folder has one")
    try:
        words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # the class that tokenizer_config.json names may build another tokenizer than the one in tokenizer.json
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=IMAGE_TOKENS)
    except Exception as error:
        raise InputError(f"model: the tokenizer in {str(folder)!r} cannot be read: {_first_line(error)}") from error
    for word in (*SENTENCE_TOKENS.values(), *IMAGE_TOKENS.values()):
        if words.token_to_id(word) is None:
            raise InputError(f"model: the tokenizer in {str(folder)!r} has no {word}; it must be Janus's")
    for role, word in SENTENCE_TOKENS.items():
        if getattr(tokenizer, role) is None:  # the original code looks the pad up by its name
            setattr(tokenizer, role, word)
    tokenizer.padding_side = "left"
    return tokenizer


def _config(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[JanusConfig, bool]:
    """The config in transformers' terms, and whether the folder has the original layout."""
    path = folder / "config.json"
    said = _read(path)
    kind = said.get("model_type") if isinstance(said, dict) else None
    if kind == convert.MODEL_TYPE:
        return convert.config_of(said, tokenizer.convert_tokens_to_ids(IMAGE_TOKENS["image_token"])), True
    if kind != "janus":
        raise InputError(f"model: {str(path)!r} says model_type {kind!r}; it must be 'janus' or {convert.MODEL_TYPE!r}")
    config = JanusConfig.from_pretrained(folder)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    return config, False


def config_of(folder: Path) -> JanusConfig:
    """A checkpoint's config in transformers' terms, whatever its layout; no weight is read. Raises InputError."""
    return _config(folder, _tokenizer(folder))[0]


def _processor(tokenizer: PreTrainedTokenizerFast, config: JanusConfig) -> JanusProcessor:
    size, mean = config.vision_config.image_size, [0.5, 0.5, 0.5]
    images = JanusImageProcessorPil(size={"height": size, "width": size}, image_mean=mean, image_std=mean)
    return JanusProcessor(images, tokenizer, num_image_tokens=config.vision_config.num_image_tokens)


def _generation(folder: Path, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKENS["boi_token"])},
    )


def _inventory(folder: Path) -> dict[str, tuple[Path, Tensor]]:
    """Where every tensor is stored, with an empty one of its shape and type."""
    found: dict[str, tuple[Path, Tensor]] = {}
    for path in _files(folder):
        with _told(path):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as stored:
                    for name in stored.keys():  # noqa: SIM118 (not a dict)
                        found[name] = (path, stored.get_tensor(name).to("meta"))  # mapped: no byte of it is read
            else:
                for name, tensor in _unpickled(path).items():
                    found[name] = (path, tensor.to("meta"))
    return found


def _tensors(stored: dict[str, tuple[Path, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors themselves, a few mapped from the disk at a time."""
    names = list(stored)
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        for path in dict.fromkeys(stored[n][0] for n in part):
            here = [n for n in part if stored[n][0] == path]
            with _told(path):
                if path.suffix == ".safetensors":
                    with safe_open(path, framework="pt") as file:
                        for name in here:
                            yield name, file.get_tensor(name)
                else:
                    file = _unpickled(path)
                    for name in here:
                        yield name, file[name]


def _renamed(named: Named, original: bool) -> Named:
    for name, tensor in named:
        if convert.UNUSED.fullmatch(name):
            continue
        yield from convert.to_transformers(name, tensor).items() if original else [(name, tensor)]


def _check(folder: Path, stored: dict[str, tuple[Path, Tensor]], shapes: dict[str, torch.Size], original: bool) -> None:
    """Every tensor has its place and every place its tensor."""
    found = set()
    for name, (path, empty) in stored.items():
        try:
            parts = dict(_renamed([(name, empty)], original))
        except (KeyError, RuntimeError):
            parts = {name: empty}
        for new, part in parts.items():
            if new not in shapes:
                raise InputError(f"model: {str(path)!r} holds {name!r}, which its config.json has no place for")
            if part.shape != shapes[new]:
                raise InputError(
                    f"model: {str(path)!r}: {name} has the shape {tuple(empty.shape)}, which makes {tuple(part.shape)} of "
                    f"{new}; its config.json asks for {tuple(shapes[new])}"
                )
            found.add(new)
    if missing := sorted(shapes.keys() - found):
        raise InputError(
            f"model: {str(folder)!r} lacks {len(missing)} tensors of a Janus checkpoint, the first is {missing[0]}; "
            f"looked through: {', '.join(path.name for path in _files(folder))}"
        )


def _files(folder: Path) -> list[Path]:
    """The weight files of a folder: those of an index, else a single one; safetensors before pickles."""
    for whole in WHOLE:
        index = folder / f"{whole}.index.json"
        if index.is_file():
            said = _read(index)
            names = sorted(set(said.get("weight_map", {}).values())) if isinstance(said, dict) else []
            lost = [n for n in names if not (folder / n).is_file()]
            if lost or not names:
                raise InputError(f"model: {str(index)!r} names {lost[0] if lost else 'no file'}, which is not there")
            return [folder / n for n in names]
        if (folder / whole).is_file():
            return [folder / whole]
    raise InputError(f"model: {str(folder)!r} holds neither {' nor '.join(WHOLE)}, whole or in shards")


def _unpickled(path: Path) -> dict[str, Tensor]:
    named = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(named, dict) or not all(isinstance(t, Tensor) for t in named.values()):
        raise InputError(f"model: {str(path)!r} does not hold named tensors")
    return named


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong while a weight file is read, as one sentence."""
    try:
        yield
    except (SafetensorError, RuntimeError, OSError, pickle.UnpicklingError, EOFError) as error:
        lost = _cut_off(path) if path.suffix == ".safetensors" else None
        reason = f"{lost} is cut off" if lost else _first_line(error)
        raise InputError(f"model: {str(path)!r} is not a whole weight file: {reason}") from error


def _cut_off(path: Path) -> str | None:
    """The first tensor of a safetensors file that the file is too short for (the format: a length, a JSON header, the data)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return "its header"
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return None
    ends = {name: 8 + length + said["data_offsets"][1] for name, said in header.items() if name != "__metadata__"}
    return min((name for name in ends if ends[name] > path.stat().st_size), key=ends.__getitem__, default=None)


def _write_shards(folder: Path, empty: dict[str, Tensor], named: Named, shard_size: str) -> None:
    """safetensors files of at most ``shard_size`` with their index, each written as soon as its tensors have come."""
    try:
        split = split_torch_state_dict_into_shards(empty, max_shard_size=shard_size)
    except ValueError as error:
        raise InputError(f"shard_size: {shard_size!r} is no size; give one like 5GB or 500MB") from error
    waiting: dict[str, dict[str, Tensor]] = {name: {} for name in split.filename_to_tensors}
    for name, tensor in named:
        file = split.tensor_to_filename[name]
        waiting[file][name] = tensor.clone(memory_format=torch.contiguous_format)
        if len(waiting[file]) == len(split.filename_to_tensors[file]):
            save_file(waiting.pop(file), folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        _write(folder / f"{WHOLE[0]}.index.json", {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model: {str(path)!r} cannot be read as JSON ({_first_line(error)})") from error


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
