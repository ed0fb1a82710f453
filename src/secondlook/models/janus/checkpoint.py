"""Checkpoint folders, in transformers' layout or the original one: found out from the files,
checked whole before a weight is read, loaded and converted a few tensors at a time.

Every complaint is an InputError that names the file and the tensor (``weights`` reads the files).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessorPil,
    JanusProcessor,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights

from secondlook.errors import InputError
from secondlook.io import check_name, read_text, whole_folder, writable_folder
from secondlook.models.device import resolve_device
from secondlook.models.janus import convert, weight_files
from secondlook.models.shipped import locate

IMAGE_TOKENS = {
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
SENTENCE_TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
}
HISTORIES = ("codes", "reencode")
"""What a redraw may have as an earlier drawn image (``Janus.history``)."""


def fetch(model: str) -> Path:
    """The folder of a checkpoint: as given, or a hub id's snapshot (pickles only when it has no
    safetensors)."""
    if Path(model).is_dir():
        return Path(model)
    try:
        folder = Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            snapshot_download(model, allow_patterns=["*.bin"])
    except Exception as error:
        raise InputError(
            f"model: {model!r} could not be fetched from the hub: {weight_files.one_line(error)}"
        ) from error
    return folder


def load_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """The tokenizer alone of a shipped model, a folder or a hub id. Raises InputError."""
    return _tokenizer(fetch(locate(model)))


@dataclass(frozen=True)
class _Opened:
    """A checkpoint folder of which everything but the weights' values has been checked."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    config: JanusConfig
    """In transformers' terms; its dtype is that of the weights."""
    original: bool
    """The folder has the original layout."""
    stored: weight_files.Stored

    def named(self) -> weight_files.Named:
        """The tensors under transformers' names, a few at a time."""
        return _renamed(weight_files.tensors(self.stored), self.original)


def load(
    folder: Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """Network and processor of a checkpoint folder. ``dtype`` None is the one it is stored in.

    Peak memory is the model and a few tensors. Raises InputError before any weight is read when
    files or tensors are missing, cut off, foreign, of another shape or of a type that does not
    stand for itself; and after it for weights that are not finite in ``dtype``.
    """
    found = _open(folder, attention)
    generation = _generation(folder, found.tokenizer)
    dtype = dtype or found.config.dtype
    with no_init_weights(), resolve_device(device):
        net = JanusForConditionalGeneration._from_config(
            found.config, dtype=dtype, attn_implementation=attention
        )
    wanted, finite = net.state_dict(), {}
    with torch.no_grad():
        for name, tensor in found.named():
            finite[name] = weight_files.finite(wanted[name].copy_(tensor))
    if strange := [
        name
        for name, good in zip(finite, torch.stack(list(finite.values())).tolist(), strict=True)
        if not good
    ]:
        raise InputError(_not_finite(folder, strange[0], dtype))
    net.generation_config = generation
    return net.eval(), _processor(found.tokenizer, found.config)


def convert_checkpoint(source: Path, target: Path, shard_size: str = "5GB") -> str:
    """Write ``source`` in the other layout to the new folder ``target``, streaming; returns the
    layout written.

    Raises InputError as ``load`` does, or when ``target`` exists. Nothing is left behind by a
    failure.
    """
    check_name(target)
    if weight_files.there(target):
        raise InputError(f"out: {str(target)!r} exists; name a new folder")
    found = _open(source)
    generation = _generation(source, found.tokenizer)
    writable_folder(target.parent, claimed=False)
    with whole_folder(target, new=True) as work:
        _write(found, work, shard_size)
        generation.save_pretrained(work)
    return "transformers" if found.original else "original"


def _write(found: _Opened, work: Path, shard_size: str) -> None:
    """Everything but the generation config, in the layout that it is not in."""
    other: Callable[[weight_files.Named], weight_files.Named] = (
        (lambda named: _renamed(named, True)) if found.original else convert.to_original
    )
    # the config first: it refuses what the original layout has no words for
    said = None if found.original else convert.original_config(found.config)
    empty = dict(
        convert.unit_codebook(other((name, tensor) for name, (_, tensor) in found.stored.items()))
    )
    named = convert.unit_codebook(other(_all_finite(found)))
    weight_files.write_shards(work, empty, named, shard_size)
    if said is None:
        found.config.architectures = ["JanusForConditionalGeneration"]
        found.config.save_pretrained(work)
        _processor(found.tokenizer, found.config).save_pretrained(work)
    else:
        weight_files.write_object(work / "config.json", said)
        weight_files.write_object(
            work / "preprocessor_config.json", convert.original_image_processor(found.config)
        )
        weight_files.write_object(
            work / "processor_config.json", convert.original_processor(found.config)
        )
        found.tokenizer.save_pretrained(work)


def _all_finite(found: _Opened) -> weight_files.Named:
    for name, tensor in weight_files.tensors(found.stored):
        if not weight_files.finite(tensor):
            raise InputError(_not_finite(found.folder, name, tensor.dtype))
        yield name, tensor


def _not_finite(folder: Path, name: str, dtype: torch.dtype) -> str:
    kind = str(dtype).removeprefix("torch.")
    return (
        f"model: {str(folder)!r}: {name} has values that are no finite {kind} numbers; give a "
        "whole checkpoint"
        f"{', or a dtype that holds larger numbers' if dtype == torch.float16 else ''}"
    )


def config_of(folder: Path) -> JanusConfig:
    """A checkpoint's config in transformers' terms, whatever its layout; no weight is read. Raises
    InputError."""
    return _described(folder)[1]


def _open(folder: Path, attention: str = "sdpa") -> _Opened:
    tokenizer, config, original = _described(folder)
    stored = weight_files.inventory(folder, convert.UNUSED)
    said = weight_files.read_object(folder / "config.json")
    for part in (said, *(v for v in said.values() if isinstance(v, dict))):
        if part.get("quantization_config"):
            raise InputError(
                f"model: {str(folder / 'config.json')!r} has a quantization_config: its weights "
                "are not read as what they "
                "stand for; give the checkpoint in float32, bfloat16 or float16 (or take the "
                "entry away, where they are)"
            )
    sizes: Counter[torch.dtype] = Counter()
    for _, tensor in stored.values():
        sizes[tensor.dtype] += tensor.numel()
    config.dtype = config.dtype or max(sizes, key=sizes.__getitem__, default=torch.float32)
    with torch.device("meta"), no_init_weights(), _understood(folder):
        net = JanusForConditionalGeneration._from_config(config, attn_implementation=attention)
    _check(
        folder, stored, {name: tensor.shape for name, tensor in net.state_dict().items()}, original
    )
    return _Opened(folder, tokenizer, config, original, stored)


def _described(folder: Path) -> tuple[PreTrainedTokenizerFast, JanusConfig, bool]:
    """Tokenizer, config in transformers' terms, and whether the folder has the original layout."""
    _no_adapter(folder)
    tokenizer = _tokenizer(folder)
    path = folder / "config.json"
    said = weight_files.read_object(path)
    dtype = _dtype(path, said)
    kind = said.get("model_type")
    if kind not in ("janus", convert.MODEL_TYPE):
        raise InputError(
            f"model: {str(path)!r} says model_type {kind!r}; it must be 'janus' or "
            f"{convert.MODEL_TYPE!r}"
        )
    with _understood(folder):
        if kind == convert.MODEL_TYPE:
            config = convert.config_of(
                said, tokenizer.convert_tokens_to_ids(IMAGE_TOKENS["image_token"])
            )
        else:
            config = JanusConfig.from_dict(said)
            config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
        config.dtype = dtype
        _fits_itself(config)
    size, most = config.text_config.vocab_size, max(tokenizer.get_vocab().values())
    if most >= size:
        raise InputError(
            f"model: {str(folder / 'tokenizer.json')!r} has the id {most}; {path.name} says "
            f"vocab_size {size}"
        )
    for name in ("preprocessor_config.json", "processor_config.json"):
        if weight_files.there(folder / name):
            _same_pictures(folder / name, config.vision_config.image_size)
    return tokenizer, config, kind == convert.MODEL_TYPE


@contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """What transformers cannot make a network of, as one sentence."""
    path = str(folder / "config.json")
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"model: no Janus can be made of {path!r}: {weight_files.one_line(error)}"
        ) from error


def _dtype(path: Path, said: dict[str, Any]) -> torch.dtype | None:
    """The type of the weights, taken out of a config.json wherever it is stated; None where it is
    left open."""
    found = []
    for part in (said, *(v for v in said.values() if isinstance(v, dict))):
        for value in [part.pop(name) for name in ("dtype", "torch_dtype") if name in part]:
            kind = (
                getattr(torch, value.removeprefix("torch."), None)
                if isinstance(value, str)
                else None
            )
            if kind in weight_files.PLAIN.values():
                found.append(kind)
            elif value not in (None, "auto"):
                raise InputError(
                    f"model: {str(path)!r} says dtype {value!r}; it must be float32, bfloat16, "
                    "float16 or auto"
                )
    return found[0] if found else None


MOST_LAYERS = 1000


def _fits_itself(config: JanusConfig) -> None:
    """Raises InputError where numbers of a config contradict each other or are beyond any
    network."""
    text, seeing, vq = config.text_config, config.vision_config, config.vq_config
    layers = {
        "text_config.num_hidden_layers": text.num_hidden_layers,
        "vision_config.num_hidden_layers": seeing.num_hidden_layers,
        "vision_config.depth": seeing.depth,
        "vq_config.num_hidden_layers": vq.num_hidden_layers,
        "vq_config.num_res_blocks": vq.num_res_blocks,
        "length of vq_config.channel_multiplier": len(vq.channel_multiplier),
    }
    for name, n in layers.items():
        if not 0 < n <= MOST_LAYERS:
            raise ValueError(f"the {name} is {n}; it must be from 1 to {MOST_LAYERS}")
    side, patch = seeing.image_size, seeing.patch_size
    drawn = vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)
    if seeing.num_image_tokens != (side // patch) ** 2 or drawn != side:
        raise ValueError(
            f"pictures of {side} pixels in patches of {patch} do not make vision_config's "
            f"{seeing.num_image_tokens} "
            f"num_image_tokens, or are drawn with {drawn} pixels"
        )


def _no_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    if not weight_files.there(path):
        return
    said = weight_files.read_object(path)
    kind, base = (
        str(said.get("peft_type") or "peft").replace("LORA", "LoRA"),
        said.get("base_model_name_or_path"),
    )
    base = f"{base!r}" if base else "a model that it does not name"
    if weight_files.there(folder.absolute().parent / "config.json"):
        how = (
            f"the folder above it, {str(folder.parent)!r}, is the checkpoint with the "
            "adapter merged"
        )
    else:
        how = (
            "merge it first: "
            "PeftModel.from_pretrained(JanusForConditionalGeneration.from_pretrained(base), "
            "adapter)"
            ".merge_and_unload().save_pretrained(new), by peft, and copy the base's tokenizer "
            "files to the new folder"
        )
    raise InputError(
        f"model: {str(folder)!r} is a {kind} adapter of {base}, not a checkpoint; {how}"
    )


def _same_pictures(path: Path, side: int) -> None:
    """A processor's file asks for pictures as Janus has them, which are all that there are here."""
    said = weight_files.read_object(path)
    said = said.get("image_processor", said)
    half, size = [0.5, 0.5, 0.5], {"height": side, "width": side}
    wanted = {"image_mean": half, "image_std": half, "size": size, "image_size": side}
    for name, value in wanted.items():
        if isinstance(said, dict) and said.get(name, value) != value:
            raise InputError(
                f"model: {str(path)!r} says {name} {said[name]!r}; Janus's is {value!r}"
            )


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TEMPLATES = ("chat_template.json", "chat_template.jinja")


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not weight_files.there(folder / "tokenizer.json"):
        raise InputError(
            f"model: {str(folder)!r} holds no tokenizer.json; a checkpoint folder has one"
        )
    texts = {}
    for name in (*TOKENIZER_FILES, *TEMPLATES):
        if weight_files.there(folder / name):
            texts[name] = read_text(weight_files.whole(folder / name))
            if name.endswith(".json"):
                weight_files.read_object(folder / name)
    try:
        words = Tokenizer.from_str(texts["tokenizer.json"])
        with (
            TemporaryDirectory() as plain
        ):  # transformers reads plain UTF-8 only, and whatever else a folder holds
            for name, text in texts.items():
                (Path(plain) / name).write_text(text, encoding="utf-8")
            # the class that tokenizer_config.json names may build another tokenizer than the one in
            # tokenizer.json
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                plain, extra_special_tokens=IMAGE_TOKENS
            )
        tokenizer.name_or_path = str(folder)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers' Rust panics are no Exception
        raise InputError(
            f"model: no tokenizer can be made of {', '.join(texts)} in {str(folder)!r}: "
            f"{weight_files.one_line(error)}"
        ) from error
    for word in (*SENTENCE_TOKENS.values(), *IMAGE_TOKENS.values()):
        if words.token_to_id(word) is None:
            raise InputError(
                f"model: the tokenizer in {str(folder)!r} has no {word}; it must be Janus's"
            )
    for role, word in SENTENCE_TOKENS.items():
        if getattr(tokenizer, role) is None:  # the original code looks the pad up by its name
            setattr(tokenizer, role, word)
    tokenizer.padding_side = "left"
    return tokenizer


def _processor(tokenizer: PreTrainedTokenizerFast, config: JanusConfig) -> JanusProcessor:
    size, mean = config.vision_config.image_size, [0.5, 0.5, 0.5]
    images = JanusImageProcessorPil(
        size={"height": size, "width": size}, image_mean=mean, image_std=mean
    )
    return JanusProcessor(images, tokenizer, num_image_tokens=config.vision_config.num_image_tokens)


def _generation(folder: Path, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    path = folder / "generation_config.json"
    if not weight_files.there(path):
        return GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            generation_kwargs={
                "boi_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKENS["boi_token"])
            },
        )
    said = weight_files.read_object(path)
    for name in ("guidance_scale", "edit_guidance_scale"):
        value = said.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or value < 0
        ):
            raise InputError(
                f"model: {str(path)!r} says {name} {value!r}; it must be a number of at least 0"
            )
    if said.get("history") not in (None, *HISTORIES):
        raise InputError(
            f"model: {str(path)!r} says history {said['history']!r}; it must be "
            f"{' or '.join(HISTORIES)}"
        )
    try:
        return GenerationConfig.from_dict(said)
    except Exception as error:
        raise InputError(
            f"model: {str(path)!r} is no generation config: {weight_files.one_line(error)}"
        ) from error


def _renamed(named: weight_files.Named, original: bool) -> weight_files.Named:
    for name, tensor in named:
        yield from convert.to_transformers(name, tensor).items() if original else [(name, tensor)]


def _check(
    folder: Path, stored: weight_files.Stored, shapes: dict[str, torch.Size], original: bool
) -> None:
    """Every tensor has its place and every place its tensor."""
    found = set()
    for name, (path, empty) in stored.items():
        try:
            parts = dict(_renamed([(name, empty)], original))
        except (KeyError, RuntimeError):
            parts = {name: empty}
        for new, part in parts.items():
            if new not in shapes:
                raise InputError(
                    f"model: {str(path)!r} holds {name!r}, which its config.json has no place for"
                )
            if part.shape != shapes[new]:
                raise InputError(
                    f"model: {str(path)!r}: {name} has the shape {tuple(empty.shape)}, which "
                    f"makes {tuple(part.shape)} of "
                    f"{new}; its config.json asks for {tuple(shapes[new])}"
                )
            found.add(new)
    if missing := sorted(shapes.keys() - found):
        raise InputError(
            f"model: {str(folder)!r} lacks {len(missing)} tensors of a Janus checkpoint, the "
            f"first is {missing[0]}; "
            f"looked through: {', '.join(dict.fromkeys(path.name for path, _ in stored.values()))}"
        )
