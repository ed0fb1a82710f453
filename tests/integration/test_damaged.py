"""Checkpoint folders of other people: a damaged, foreign or quantised one gets a sentence with its
name."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration

from folders import GOLDEN
from secondlook.engine.engine import Engine
from secondlook.errors import InputError, Stopped
from secondlook.models.janus import checkpoint
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate
from secondlook.rewards.self_judge import SelfJudge

WEIGHTS = "model.safetensors"
LFS = (
    f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4180000000\n".encode()
)
ANNEX = b"/annex/objects/SHA256E-s4180--0f2d.safetensors\n"
CODES, NORM = "model.vqmodel.quantize.embedding.weight", "model.language_model.norm.weight"


@pytest.fixture(scope="module")
def good(janus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "m"
    janus.save(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "m")


def refused(folder, *words):
    """The one sentence that both load and convert refuse the folder with; nothing is left
    behind."""
    said = []
    for attempt in (
        lambda: checkpoint.load(folder),
        lambda: checkpoint.convert_checkpoint(folder, folder.parent / "new"),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        said.append(str(caught.value))
    assert said[0] == said[1] and "\n" not in said[0] and len(said[0]) < 600
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    for word in words:
        assert word in said[0], said[0]


def change(path, **values):
    """Set values of a JSON file; a name may lead into it (``text_config.dtype``)."""
    said = json.loads(path.read_text())
    for name, value in values.items():
        *into, last = name.split(".")
        part = said
        for key in into:
            part = part[key]
        part[last] = value
    path.write_text(json.dumps(said))


def in_place_of(path):
    path.unlink()
    return path


DAMAGE = {
    "missing_for": lambda path: in_place_of(path).symlink_to("nowhere/blob"),
    "annex_link": lambda path: in_place_of(path).symlink_to(".git/annex/objects/xy/blob"),
    "loop": lambda path: in_place_of(path).symlink_to(path.name),
    "folder": lambda path: in_place_of(path).mkdir(),
    "pipe": lambda path: os.mkfifo(in_place_of(path)),
    "empty": lambda path: path.write_bytes(b""),
    "lfs": lambda path: path.write_bytes(LFS),
    "annex": lambda path: path.write_bytes(ANNEX),
    "brace": lambda path: path.write_bytes(b"{"),
    "list": lambda path: path.write_bytes(b"[1, 2]"),
    "page": lambda path: path.write_bytes(b"<!DOCTYPE html><html>404</html>"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last_byte": lambda path: path.write_bytes(path.read_bytes().rstrip()[:-1]),
    "latin_1": lambda path: path.write_bytes(path.read_bytes().replace(b'"', b'"\xe9', 1)),
    "utf_16": lambda path: path.write_bytes(path.read_text(errors="replace").encode("utf-16-le")),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_files(good, tmp_path, damage):
    """In every file of a folder: also those that a checkpoint need not have."""
    for name in sorted(p.name for p in good.iterdir()):
        folder = shutil.copytree(good, tmp_path / "m")
        DAMAGE[damage](folder / name)
        refused(folder, f"m/{name}'")
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name",
    [
        "added_tokens.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "special_tokens_map.json",
    ],
)
def test_damaged_files_that_only_some_folders_have(folder, name):
    (folder / name).write_bytes(b"{\xe9")
    refused(folder, name)
    (folder / name).write_bytes(LFS)
    refused(folder, name, "git lfs pull")


def test_a_file_that_may_not_be_opened(folder, monkeypatch):
    """Whoever runs the tests may be allowed everything, so the system's refusal is put in its
    place."""
    opened = type(folder).open

    def refuse(path, *args, **kw):
        if path.name == WEIGHTS:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kw)

    monkeypatch.setattr(type(folder), "open", refuse)
    refused(folder, WEIGHTS, "Permission denied")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_from_another_system_is_read_as_it_was_meant(folder, good, encoding):
    for path in folder.glob("*.json"):
        path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    net, processor = checkpoint.load(folder)
    same, other = checkpoint.load(good)
    assert (
        net.config.to_dict() == same.config.to_dict()
        and net.generation_config == same.generation_config
    )
    words = "a photo of two <image_placeholder> é"
    assert processor.tokenizer(words) == other.tokenizer(words)
    assert processor.tokenizer.special_tokens_map == other.tokenizer.special_tokens_map


def stored_as(dtype):
    def harm(folder):
        tensors = load_file(folder / WEIGHTS)
        save_file(tensors | {NORM: tensors[NORM].to(dtype)}, folder / WEIGHTS)

    return harm


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int32", "bool", "complex64"]
)
def test_types_that_do_not_stand_for_themselves(folder, dtype, pickled):
    stored_as(getattr(torch, dtype))(folder)
    if pickled:
        torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()
    refused(folder, NORM, dtype)


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_four_bits(folder):
    header, data = header_of(folder / WEIGHTS)
    header[NORM]["dtype"], header[NORM]["shape"] = "F4", [header[NORM]["shape"][0] * 8]
    with_header(folder / WEIGHTS, header, data)
    refused(folder, NORM, "float4")


def test_strange_pickles(folder):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for value, words in (
        (
            tensors | {NORM: torch.quantize_per_tensor(tensors[NORM], 0.1, 0, torch.qint8)},
            ["qint8"],
        ),
        (tensors | {NORM: tensors[NORM].to_sparse()}, ["sparse"]),
        (tensors | {NORM: tensors[NORM].to("meta")}, ["meta"]),
        ({"state_dict": tensors}, ["named tensors"]),
        ([1, 2], ["named tensors"]),
    ):
        torch.save(value, folder / "pytorch_model.bin")
        refused(folder, "pytorch_model.bin", *words)


def test_a_pickle_of_the_old_form_is_read(folder, good):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    found = checkpoint.load(folder)[0].state_dict()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("where", ["", "text_config."])
def test_a_quantised_config(folder, where):
    change(
        folder / "config.json",
        **{f"{where}quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    )
    refused(folder, "config.json", "quantization_config")


def test_header_of_safetensors(folder):
    path = folder / WEIGHTS
    data = path.read_bytes()
    for length in (0, 7, 10**8 + 1, 2**63, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + data[8:])
        refused(folder, WEIGHTS)
    path.write_bytes(data)
    header, rest = header_of(path)
    for offsets in ([0, 4], [-4, 0], [10**12, 10**12 + 4], [8, 0], "x", None):
        with_header(path, header | {NORM: header[NORM] | {"data_offsets": offsets}}, rest)
        refused(folder, WEIGHTS)
    with_header(path, header | {NORM: header[NORM] | {"shape": [2**40, 2**40]}}, rest)
    refused(folder, WEIGHTS)


def in_shards(folder, parts=2):
    """The folder's weights in shards; returns the index as it is written."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: f"model-{i % parts}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def test_shards_and_index_that_contradict_each_other(folder):
    places = in_shards(folder)
    checkpoint.load(folder)
    index = folder / f"{WEIGHTS}.index.json"
    file = places[NORM]
    other = next(f for f in places.values() if f != file)
    for weight_map, words in (
        (places | {NORM: other}, ["index.json", NORM]),
        (places | {"model.more": file}, ["index.json", "model.more"]),
        ({n: f for n, f in places.items() if n != NORM}, [file, NORM]),
        (places | {NORM: 5}, ["index.json", "5"]),
        (places | {NORM: ["model-0.safetensors"]}, ["index.json"]),
        (places | {NORM: "../m/model-0.safetensors"}, ["index.json", "../m"]),
        (
            places | {NORM: "model-9.safetensors"},
            ["index.json", "model-9.safetensors, which is not there"],
        ),
        ({}, ["index.json"]),
        (None, ["index.json"]),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(folder, *words)
    index.write_text(json.dumps({"weight_map": places}))
    save_file(load_file(folder / other) | {NORM: load_file(folder / file)[NORM]}, folder / other)
    refused(folder, NORM, "too")


def test_an_index_beside_whole_weights(folder):
    shutil.copy(folder / WEIGHTS, folder.parent / "kept")
    in_shards(folder)
    (folder.parent / "kept").rename(folder / WEIGHTS)
    refused(folder, "holds both model.safetensors and model.safetensors.index.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(folder, value):
    tensors = load_file(folder / WEIGHTS)
    tensors[NORM][3] = value
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InputError, match=f"{NORM} has values that are no finite float32 numbers"):
        checkpoint.load(folder)


def test_weights_too_large_for_a_type(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors[NORM][3] = 1e5
    save_file(tensors, folder / WEIGHTS)
    checkpoint.load(folder, torch.bfloat16)
    with pytest.raises(InputError, match=f"{NORM} has values that are no finite float16 numbers"):
        checkpoint.load(folder, torch.float16)


def test_no_verdict_of_what_is_no_number(good):
    """Also finite weights may lead to NaN, in a type that is too small for what they make."""
    janus = Janus.load(good)
    janus.net.lm_head.weight.data[:] = torch.nan
    engine = Engine(janus)
    picture = Image.new("RGB", (48, 48), "red")
    with pytest.raises(Stopped, match="is no number"):
        SelfJudge(engine)([("a red star", picture)])


def test_any_way_to_say_a_type(folder):
    stored_as(torch.float32)(folder)
    path = folder / "config.json"
    for values in (
        {"dtype": "auto"},
        {"dtype": None},
        {"dtype": "bfloat16"},
        {"dtype": "torch.float32"},
    ):
        change(path, **values)
        assert checkpoint.load(folder, torch.float32)[0].dtype == torch.float32
        wanted = torch.bfloat16 if values["dtype"] == "bfloat16" else torch.float32
        assert checkpoint.load(folder)[0].dtype == wanted
    said = json.loads(path.read_text())
    del said["dtype"]
    path.write_text(json.dumps(said | {"torch_dtype": "float16"}))
    assert checkpoint.load(folder)[0].dtype == torch.float16
    for value in (5, "int4", "Tensor", ["float32"], {"": "float32"}, True):
        for name in ("dtype", "torch_dtype", "text_config.dtype"):
            path.write_text(json.dumps(said))
            change(path, **{name: value})
            refused(folder, "config.json", repr(value))


def test_numbers_of_a_config_that_make_no_network(folder):
    path = folder / "config.json"
    said = path.read_text()
    for name, values in {
        "text_config.num_hidden_layers": [10**9, 0, -1, 1.5, "2", None, True, 3],
        "text_config.hidden_size": [10**12, 0, "x", [1], 50],
        "text_config.num_attention_heads": [0, -2, 5],
        "text_config.rms_norm_eps": ["x", None],
        "text_config.vocab_size": [10],
        "text_config": [None, [], "x"],
        "vision_config.num_image_tokens": [35],
        "vision_config.image_size": [49, 0, [48, 48]],
        "vision_config.patch_size": [0],
        "vq_config.channel_multiplier": [[], 5, [1, 10**9]],
        "vq_config.num_embeddings": [10**10],
        "vision_config.hidden_act": ["nothing"],
    }.items():
        for value in values:
            path.write_text(said)
            change(path, **{name: value})
            refused(folder)
    for text in (said.replace("1e-06", "NaN"), said.replace("1e-06", "1e999")):
        path.write_text(text)
        refused(folder, "config.json", "finite")


def test_a_generation_config_that_says_what_no_one_can_do(folder):
    path = folder / "generation_config.json"
    said = path.read_text()
    for name, values in {
        "guidance_scale": ["x", -1, True, [5]],
        "edit_guidance_scale": ["x"],
        "history": ["pixels", 5],
        "redraw_sees": ["first", 3],
        "judge_rereads": ["yes", 1],
        "reason_tokens": [0, "many", True],
    }.items():
        for value in values:
            path.write_text(said)
            change(path, **{name: value})
            refused(folder, "generation_config.json", name)


def test_pictures_that_another_model_was_made_for(folder):
    change(folder / "processor_config.json", **{"image_processor.image_mean": [0.48, 0.46, 0.41]})
    refused(folder, "processor_config.json", "image_mean")


@pytest.mark.parametrize("more", [[], ["tokenizer.json", "tokenizer_config.json", "config.json"]])
def test_an_adapter(good, tmp_path, more):
    folder = tmp_path / "m"
    folder.mkdir()
    for name in more:
        shutil.copy(good / name, folder)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "mini-base"})
    )
    refused(folder, "is a LoRA adapter of 'mini-base'", "merge_and_unload")
    (folder / "adapter_config.json").write_text("{")
    refused(folder, "adapter_config.json")
    shutil.copytree(folder, good / "adapter")
    (good / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=f"{good}', is the checkpoint with the adapter merged"):
        checkpoint.load(good / "adapter")
    shutil.rmtree(good / "adapter")


def test_a_file_in_place_of_a_folder(good):
    with pytest.raises(InputError, match="is a file; give the folder"):
        locate(str(good / WEIGHTS))
    with pytest.raises(InputError, match="is neither shipped"):
        locate("x" * 5000)


def test_transformers_encodes_what_convert_wrote_like_the_original(official_folder, tmp_path):
    """Its search is by distance to the rows as stored, the original's by angle: equal only for rows
    of one length."""
    checkpoint.convert_checkpoint(official_folder, tmp_path / "new")
    checkpoint.convert_checkpoint(tmp_path / "new", tmp_path / "old")
    stored = np.load(GOLDEN / "official_tiny" / "golden.npz")
    before, after, again = (
        checkpoint.load(f)[0].model.vqmodel
        for f in (official_folder, tmp_path / "new", tmp_path / "old")
    )
    plain = JanusForConditionalGeneration.from_pretrained(tmp_path / "new").eval().model.vqmodel
    pixels = torch.from_numpy(
        np.random.default_rng(303).uniform(-1, 1, (1, 3, 384, 384)).astype(np.float32)
    )
    settled = stored["encoded_noise_margin"].ravel() > 1e-5
    assert settled.sum() == 575
    with torch.inference_mode():
        latents = before.quant_conv(
            before.encoder(pixels)
        )  # the same for all: only the codebook is written anew
        found = [vq.quantize(latents)[2] for vq in (plain, after, again)]
        turned = F.normalize(latents.permute(0, 2, 3, 1), dim=-1).flatten(0, 2)
        for vq in (after, again):  # as the original code
            found.append((turned @ F.normalize(vq.quantize.embedding.weight, dim=-1).T).argmax(-1))
            rows = (F.normalize(v.quantize.embedding.weight, dim=-1) for v in (before, vq))
            assert torch.stack(list(rows)).diff(dim=0).abs().max() < 2e-7
    for codes in found:
        assert (codes.ravel().numpy() == stored["encoded_noise_codes"].ravel())[settled].all()


def test_the_codebook_of_half_precision_is_written_precisely(official_folder, tmp_path):
    tensors = load_file(official_folder / WEIGHTS)
    folder = shutil.copytree(official_folder, tmp_path / "half", ignore=lambda *_: [WEIGHTS])
    save_file({name: t.bfloat16() for name, t in tensors.items()}, folder / WEIGHTS)
    checkpoint.convert_checkpoint(folder, tmp_path / "new")
    with safe_open(tmp_path / "new" / WEIGHTS, "pt") as file:
        assert (file.get_tensor(CODES).norm(dim=-1) - 1).abs().max() < 1e-6
        assert file.get_tensor(NORM).dtype == torch.bfloat16
    name = "language_model.model.norm.weight"
    save_file(
        {n: t.bfloat16() * (float("nan") if n == name else 1) for n, t in tensors.items()},
        folder / WEIGHTS,
    )
    with pytest.raises(InputError, match=f"{name} has values that are no finite bfloat16 numbers"):
        checkpoint.convert_checkpoint(folder, tmp_path / "again")
    assert {p.name for p in tmp_path.iterdir()} == {"half", "new"}
