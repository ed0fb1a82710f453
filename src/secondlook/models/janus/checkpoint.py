"""Checkpoint folders, in transformers' layout or the original one: found out from the files,
checked whole before a weight is read, loaded and converted a few tensors at a time.

``config_files``, ``tokenizer_files`` and ``weight_files`` read the files, ``convert`` knows the two
layouts. Every complaint is an InputError that names the file and the tensor.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights

from secondlook.errors import InputError
from secondlook.io import check_name, whole_folder, writable_folder
from secondlook.models.device import resolve_device
from secondlook.models.janus import config_files, convert, weight_files
from secondlook.models.janus.tokenizer_files import processor_of, read_tokenizer
from secondlook.models.janus.weight_files import NamedTensors, StoredTensor
from secondlook.models.shipped import locate


def fetch(model: str) -> Path:
    """The folder of a checkpoint: as given, or a hub id's snapshot (pickles only when it has no
    safetensors). Raises InputError."""
    if Path(model).is_dir():
        return Path(model)
    try:
        folder = Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            snapshot_download(model, allow_patterns=["*.bin"])
    except Exception as error:
        raise InputError(
            f"model: {model!r}: no such folder, and it could not be fetched from the hub: "
            f"{weight_files.one_line(error)}"
        ) from error
    return folder


def load_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """The tokenizer alone of a shipped model, a folder or a hub id. Raises InputError."""
    return read_tokenizer(fetch(locate(model)))


def config_of(folder: Path) -> JanusConfig:
    """A checkpoint's config in transformers' terms, whatever its layout; no weight is read. Raises
    InputError."""
    return config_files.describe(folder).config


def judge_rereads(folder: Path) -> bool:
    """``Janus.judge_rereads`` of a checkpoint; no weight is read."""
    path = folder / "generation_config.json"
    return path.is_file() and bool(weight_files.read_object(path).get("judge_rereads"))


@dataclass(frozen=True)
class _CheckedFolder:
    """A checkpoint folder of which everything but the weights' values has been checked."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    config: JanusConfig
    """In transformers' terms; its dtype is that of the weights."""
    is_original: bool
    """The folder has the original layout."""
    stored_tensors: dict[str, StoredTensor]
    """By their names in the folder."""


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
    checked = _check_folder(folder, attention)
    generation_config = config_files.read_generation_config(folder, checked.tokenizer)
    dtype = dtype or checked.config.dtype
    with no_init_weights(), resolve_device(device):
        net = JanusForConditionalGeneration._from_config(
            checked.config, dtype=dtype, attn_implementation=attention
        )
    parameters = net.state_dict()
    stored_tensors = weight_files.tensors(checked.stored_tensors)
    finite_flags: dict[str, Tensor] = {}  # by name, each a boolean () on the device
    with torch.no_grad():
        for name, tensor in _in_transformers_names(stored_tensors, checked.is_original):
            parameter = parameters[name].copy_(tensor)
            finite_flags[name] = weight_files.is_finite(parameter)
    # one stack, so that a GPU is waited for once and not at every tensor
    are_finite = torch.stack(list(finite_flags.values())).tolist()
    for name, finite in zip(finite_flags, are_finite, strict=True):
        if not finite:
            raise InputError(_not_finite(folder, name, dtype))
    net.generation_config = generation_config
    return net.eval(), processor_of(checked.tokenizer, checked.config)


def convert_checkpoint(source: Path, target: Path, shard_size: str = "5GB") -> str:
    """Write ``source`` in the other layout to the new folder ``target``, streaming; returns the
    layout written.

    Raises InputError as ``load`` does, or when ``target`` exists. Nothing is left behind by a
    failure.
    """
    check_name(target)
    if weight_files.exists(target):
        raise InputError(f"out: {str(target)!r} exists; name a new folder")
    checked = _check_folder(source)
    generation_config = config_files.read_generation_config(source, checked.tokenizer)
    writable_folder(target.parent, claimed=False)
    with whole_folder(target, new=True) as work_folder:
        if checked.is_original:
            _write_transformers(checked, work_folder, shard_size)
        else:
            _write_original(checked, work_folder, shard_size)
        generation_config.save_pretrained(work_folder)
    return "transformers" if checked.is_original else "original"


def _write_transformers(checked: _CheckedFolder, folder: Path, shard_size: str) -> None:
    """Everything but the generation config."""
    meta_tensors = _in_transformers_names(_meta_tensors(checked), True)
    tensors = _in_transformers_names(_finite_tensors(checked), True)
    _write_weights(folder, meta_tensors, tensors, shard_size)
    checked.config.architectures = ["JanusForConditionalGeneration"]
    checked.config.save_pretrained(folder)
    processor_of(checked.tokenizer, checked.config).save_pretrained(folder)


def _write_original(checked: _CheckedFolder, folder: Path, shard_size: str) -> None:
    """Everything but the generation config."""
    config = checked.config
    # the config first: it refuses what the original layout has no words for
    original_config = convert.original_config(config)
    meta_tensors = convert.to_original(_meta_tensors(checked))
    tensors = convert.to_original(_finite_tensors(checked))
    _write_weights(folder, meta_tensors, tensors, shard_size)
    file_contents = {
        "config.json": original_config,
        "preprocessor_config.json": convert.original_image_processor(config),
        "processor_config.json": convert.original_processor(config),
    }
    for file_name, entries in file_contents.items():
        weight_files.write_object(folder / file_name, entries)
    checked.tokenizer.save_pretrained(folder)


def _write_weights(
    folder: Path, meta_tensors: NamedTensors, tensors: NamedTensors, shard_size: str
) -> None:
    """The shards of ``tensors``, which are planned by ``meta_tensors``: the same without values."""
    planned = dict(convert.unit_codebook(meta_tensors))
    weight_files.write_shards(folder, planned, convert.unit_codebook(tensors), shard_size)


def _meta_tensors(checked: _CheckedFolder) -> NamedTensors:
    for name, stored in checked.stored_tensors.items():
        yield name, stored.meta


def _finite_tensors(checked: _CheckedFolder) -> NamedTensors:
    """The stored tensors with their values. Raises InputError at one that is not finite."""
    for name, tensor in weight_files.tensors(checked.stored_tensors):
        if not weight_files.is_finite(tensor):
            raise InputError(_not_finite(checked.folder, name, tensor.dtype))
        yield name, tensor


def _not_finite(folder: Path, name: str, dtype: torch.dtype) -> str:
    dtype_name = str(dtype).removeprefix("torch.")
    advice = ", or a dtype that holds larger numbers" if dtype == torch.float16 else ""
    return (
        f"model: {str(folder)!r}: {name} has values that are no finite {dtype_name} numbers; give "
        f"a whole checkpoint{advice}"
    )


def _check_folder(folder: Path, attention: str = "sdpa") -> _CheckedFolder:
    """Read and check everything but the weights' values. Raises InputError."""
    description = config_files.describe(folder)
    stored_tensors = weight_files.inventory(folder, convert.UNUSED)
    config_files.refuse_quantized(folder)
    config = description.config
    # where no dtype is stated it is the one of most numbers
    num_values: Counter[torch.dtype] = Counter()
    for stored in stored_tensors.values():
        num_values[stored.meta.dtype] += stored.meta.numel()
    config.dtype = config.dtype or max(
        num_values, key=num_values.__getitem__, default=torch.float32
    )
    with torch.device("meta"), no_init_weights(), config_files.config_errors(folder):
        net = JanusForConditionalGeneration._from_config(config, attn_implementation=attention)
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    _check_tensors(folder, stored_tensors, shapes, description.is_original)
    return _CheckedFolder(
        folder, description.tokenizer, config, description.is_original, stored_tensors
    )


def _in_transformers_names(tensors: NamedTensors, is_original: bool) -> NamedTensors:
    """The tensors of a folder in either layout under transformers' names."""
    for name, tensor in tensors:
        if is_original:
            yield from convert.to_transformers(name, tensor).items()
        else:
            yield name, tensor


def _check_tensors(
    folder: Path,
    stored_tensors: dict[str, StoredTensor],
    shapes: dict[str, torch.Size],
    is_original: bool,
) -> None:
    """Raises InputError unless every tensor has its place in the network, whose tensors have these
    ``shapes``, and every place its tensor."""
    filled = set()
    for name, stored in stored_tensors.items():
        try:
            renamed = dict(_in_transformers_names([(name, stored.meta)], is_original))
        except (KeyError, RuntimeError, ValueError):  # an unknown name, or no three parts of a qkv
            renamed = {name: stored.meta}
        for new_name, meta in renamed.items():
            if new_name not in shapes:
                raise InputError(
                    f"model: {str(stored.path)!r} holds {name!r}, which its config.json has no "
                    "place for"
                )
            if meta.shape != shapes[new_name]:
                raise InputError(
                    f"model: {str(stored.path)!r}: {name} has the shape "
                    f"{tuple(stored.meta.shape)}, which makes {tuple(meta.shape)} of "
                    f"{new_name}; its config.json asks for {tuple(shapes[new_name])}"
                )
            filled.add(new_name)
    missing = sorted(shapes.keys() - filled)
    if missing:
        file_names = dict.fromkeys(stored.path.name for stored in stored_tensors.values())
        raise InputError(
            f"model: {str(folder)!r} lacks {len(missing)} tensors of a Janus checkpoint, the "
            f"first is {missing[0]}; looked through: {', '.join(file_names)}"
        )
