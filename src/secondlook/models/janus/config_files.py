"""The configuration files of a checkpoint folder, in transformers' layout or the original one:
read, checked against each other, and given in transformers' terms. No weight is read here.

Every complaint is an InputError that names the file and the entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, JanusConfig, PreTrainedTokenizerFast

from secondlook.errors import InputError
from secondlook.models.janus import convert, weight_files
from secondlook.models.janus.tokenizer_files import IMAGE_TOKENS, read_tokenizer

HISTORIES = ("codes", "reencode")
"""What a redraw may have as an earlier drawn image (``Janus.history``)."""
REDRAW_SEES = ("chain", "last", "edit")
"""Which earlier images a redraw may have before it (``Janus.redraw_sees``)."""
MAX_LAYERS = 1000
"""More layers than any Janus has; a damaged config may state millions, which no memory holds."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint folder says of its model."""

    tokenizer: PreTrainedTokenizerFast
    config: JanusConfig
    """In transformers' terms; its dtype is the stated one, or None."""
    is_original: bool
    """The folder has the original layout."""


def describe(folder: Path) -> Description:
    """Tokenizer and config of a checkpoint folder, whatever its layout. Raises InputError where a
    file is missing, cannot be read, or contradicts another."""
    _refuse_adapter(folder)
    tokenizer = read_tokenizer(folder)
    config_path = folder / "config.json"
    entries = weight_files.read_object(config_path)
    dtype = _take_dtype(config_path, entries)
    model_type = entries.get("model_type")
    if model_type not in ("janus", convert.MODEL_TYPE):
        raise InputError(
            f"model: {str(config_path)!r} says model_type {model_type!r}; it must be 'janus' or "
            f"{convert.MODEL_TYPE!r}"
        )
    is_original = model_type == convert.MODEL_TYPE
    with config_errors(folder):
        if is_original:
            image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKENS["image_token"])
            config = convert.config_of(entries, image_token_id)
        else:
            config = JanusConfig.from_dict(entries)
            # transformers ties lm_head to the token table by default; Janus has one of its own
            config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
        config.dtype = dtype
        _check_sizes(config)
    vocab_size = config.text_config.vocab_size
    largest_id = max(tokenizer.get_vocab().values())
    if largest_id >= vocab_size:
        raise InputError(
            f"model: {str(folder / 'tokenizer.json')!r} has the id {largest_id}; "
            f"{config_path.name} says vocab_size {vocab_size}"
        )
    for file_name in ("preprocessor_config.json", "processor_config.json"):
        if weight_files.exists(folder / file_name):
            _check_image_processor(folder / file_name, config.vision_config.image_size)
    return Description(tokenizer, config, is_original)


@contextmanager
def config_errors(folder: Path) -> Iterator[None]:
    """Whatever transformers raises at a config inside becomes one InputError."""
    config_path = str(folder / "config.json")
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"model: no Janus can be made of {config_path!r}: {weight_files.one_line(error)}"
        ) from error


def refuse_quantized(folder: Path) -> None:
    """Raises InputError where config.json, or a part of it, says that the weights are quantized."""
    config_path = folder / "config.json"
    for section in _sections(weight_files.read_object(config_path)):
        if section.get("quantization_config"):
            raise InputError(
                f"model: {str(config_path)!r} has a quantization_config: its weights "
                "are not read as what they "
                "stand for; give the checkpoint in float32, bfloat16 or float16 (or take the "
                "entry away, where they are)"
            )


def _sections(entries: dict[str, Any]) -> list[dict[str, Any]]:
    """A config and the configs in it (text_config, vision_config …)."""
    return [entries, *(value for value in entries.values() if isinstance(value, dict))]


def _take_dtype(config_path: Path, entries: dict[str, Any]) -> torch.dtype | None:
    """The type of the weights, taken out of a config.json wherever it is stated (the first one
    counts); None where it is left open."""
    stated_dtypes = []
    for section in _sections(entries):
        for key in ("dtype", "torch_dtype"):
            if key not in section:
                continue
            value = section.pop(key)
            dtype = None
            if isinstance(value, str):  # "bfloat16" or "torch.bfloat16"
                dtype = getattr(torch, value.removeprefix("torch."), None)
            if dtype in weight_files.PLAIN_DTYPES.values():
                stated_dtypes.append(dtype)
            elif value not in (None, "auto"):
                raise InputError(
                    f"model: {str(config_path)!r} says dtype {value!r}; it must be float32, "
                    "bfloat16, float16 or auto"
                )
    return stated_dtypes[0] if stated_dtypes else None


def _check_sizes(config: JanusConfig) -> None:
    """Raises ValueError where numbers of a config contradict each other or are beyond any
    network."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    num_layers = {
        "text_config.num_hidden_layers": text.num_hidden_layers,
        "vision_config.num_hidden_layers": vision.num_hidden_layers,
        "vision_config.depth": vision.depth,
        "vq_config.num_hidden_layers": vq.num_hidden_layers,
        "vq_config.num_res_blocks": vq.num_res_blocks,
        "length of vq_config.channel_multiplier": len(vq.channel_multiplier),
    }
    for name, count in num_layers.items():
        if not 0 < count <= MAX_LAYERS:
            raise ValueError(f"the {name} is {count}; it must be from 1 to {MAX_LAYERS}")
    image_size, patch_size = vision.image_size, vision.patch_size
    # the decoder begins with one pixel a code, and doubles the side from each width to the next
    drawn_size = vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)
    num_patches = (image_size // patch_size) ** 2
    if vision.num_image_tokens != num_patches or drawn_size != image_size:
        raise ValueError(
            f"pictures of {image_size} pixels in patches of {patch_size} do not make "
            f"vision_config's {vision.num_image_tokens} "
            f"num_image_tokens, or are drawn with {drawn_size} pixels"
        )


def _refuse_adapter(folder: Path) -> None:
    """Raises InputError where the folder holds a PEFT adapter, and says what to do with it."""
    adapter_path = folder / "adapter_config.json"
    if not weight_files.exists(adapter_path):
        return
    entries = weight_files.read_object(adapter_path)
    adapter_type = str(entries.get("peft_type") or "peft").replace("LORA", "LoRA")
    base_name = entries.get("base_model_name_or_path")
    base_text = f"{base_name!r}" if base_name else "a model that it does not name"
    # this package's LoRA jobs write the adapter into a folder of the merged checkpoint
    if weight_files.exists(folder.absolute().parent / "config.json"):
        advice = (
            f"the folder above it, {str(folder.parent)!r}, is the checkpoint with the "
            "adapter merged"
        )
    else:
        advice = (
            "merge it first: "
            "PeftModel.from_pretrained(JanusForConditionalGeneration.from_pretrained(base), "
            "adapter)"
            ".merge_and_unload().save_pretrained(new), by peft, and copy the base's tokenizer "
            "files to the new folder"
        )
    raise InputError(
        f"model: {str(folder)!r} is a {adapter_type} adapter of {base_text}, not a checkpoint; "
        f"{advice}"
    )


def _check_image_processor(processor_path: Path, image_size: int) -> None:
    """Raises InputError where a processor's file asks for other pictures than ``model.letterbox``
    and ``model.to_unit`` make: squares of ``image_size`` pixels, values from -1 to 1."""
    entries = weight_files.read_object(processor_path)
    settings = entries.get("image_processor", entries)  # nested in newer transformers
    if not isinstance(settings, dict):
        return
    expected = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": image_size, "width": image_size},
        "image_size": image_size,
    }
    for key, value in expected.items():
        if settings.get(key, value) != value:
            raise InputError(
                f"model: {str(processor_path)!r} says {key} {settings[key]!r}; Janus's is {value!r}"
            )


def read_generation_config(folder: Path, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """A folder's generation_config.json, or where there is none the tokenizer's special ids alone.
    Raises InputError."""
    config_path = folder / "generation_config.json"
    if not weight_files.exists(config_path):
        boi_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKENS["boi_token"])
        return GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            generation_kwargs={"boi_token_id": boi_token_id},
        )
    entries = weight_files.read_object(config_path)
    for key in ("guidance_scale", "edit_guidance_scale"):
        value = entries.get(key)
        if value is None:
            continue
        # to Python, True is a number too
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or value < 0:
            raise InputError(
                f"model: {str(config_path)!r} says {key} {value!r}; it must be a number of at "
                "least 0"
            )
    reason_tokens = entries.get("reason_tokens")
    if reason_tokens is not None and (type(reason_tokens) is not int or reason_tokens < 1):
        raise InputError(
            f"model: {str(config_path)!r} says reason_tokens {reason_tokens!r}; it must be a whole "
            "number of at least 1"
        )
    for key, known in (("history", HISTORIES), ("redraw_sees", REDRAW_SEES)):
        if entries.get(key) not in (None, *known):
            raise InputError(
                f"model: {str(config_path)!r} says {key} {entries[key]!r}; it must be "
                f"{' or '.join(known)}"
            )
    judge_rereads = entries.get("judge_rereads")
    if judge_rereads is not None and not isinstance(judge_rereads, bool):
        raise InputError(
            f"model: {str(config_path)!r} says judge_rereads {judge_rereads!r}; it must be true or "
            "false"
        )
    try:
        return GenerationConfig.from_dict(entries)
    except Exception as error:
        raise InputError(
            f"model: {str(config_path)!r} is no generation config: {weight_files.one_line(error)}"
        ) from error
