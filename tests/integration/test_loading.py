"""Checkpoints as users have them: both layouts, both kinds of weight files, whole or in shards, and
broken in every way."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration
from transformers.initialization import no_init_weights

import fullsize
from secondlook.cli import main
from secondlook.engine.cpu_linear import fast_linear
from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.models import packing, sampling
from secondlook.models.device import inference_dtype
from secondlook.models.janus import checkpoint, convert
from secondlook.models.janus.model import Janus
from secondlook.types import Request, SamplingParams

CODEBOOK = "model.vqmodel.quantize.embedding.weight"


def same(a, b, unit=False):
    """Equal weights; with ``unit`` the codebook of ``b`` is that of ``a`` with rows of unit
    length."""
    a, b = (dict(m.state_dict()) for m in (a, b))
    if unit:
        a[CODEBOOK] = F.normalize(a[CODEBOOK], dim=-1)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def pickled(folder: Path, parts: int) -> None:
    """Turn a folder's weights into pytorch_model*.bin."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if parts == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    names = {
        name: f"pytorch_model-0000{i % parts + 1}-of-0000{parts}.bin"
        for i, name in enumerate(tensors)
    }
    for file in set(names.values()):
        torch.save({n: tensors[n] for n in names if names[n] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.fixture(scope="module")
def original(official_folder):
    return checkpoint.load(official_folder)[0]


def test_both_layouts_and_both_directions(official_folder, original, tmp_path):
    assert checkpoint.convert_checkpoint(official_folder, tmp_path / "t", "100MB") == "transformers"
    assert len(list((tmp_path / "t").glob("*.safetensors"))) > 2
    assert same(original, checkpoint.load(tmp_path / "t")[0], unit=True)
    theirs, info = JanusForConditionalGeneration.from_pretrained(
        tmp_path / "t", output_loading_info=True
    )
    assert same(original, theirs, unit=True) and not any(info.values())
    assert theirs.lm_head.weight is not theirs.get_input_embeddings().weight
    assert checkpoint.convert_checkpoint(tmp_path / "t", tmp_path / "o") == "original"
    stored, again = (load_file(f / "model.safetensors") for f in (official_folder, tmp_path / "o"))
    assert {k for k in stored if not convert.UNUSED.fullmatch(k)} == set(again)
    rows = "gen_vision_model.quantize.embedding.weight"
    stored[rows] = F.normalize(F.normalize(stored[rows], dim=-1), dim=-1)  # written twice
    assert all(torch.equal(stored[k], again[k]) for k in again)
    before, after = (
        json.loads((f / "config.json").read_text()) for f in (official_folder, tmp_path / "o")
    )
    assert {k: v for k, v in before.items() if k != "language_config"} == {
        k: v for k, v in after.items() if k != "language_config"
    }
    assert before["language_config"].items() <= after["language_config"].items()


@pytest.mark.parametrize("parts", [1, 2])
def test_pickles(official_folder, original, tmp_path, parts):
    shutil.copytree(official_folder, tmp_path / "b")
    pickled(tmp_path / "b", parts)
    assert same(original, checkpoint.load(tmp_path / "b")[0])


def test_a_pad_that_the_tokenizer_does_not_name(official_folder, tmp_path):
    shutil.copytree(
        official_folder, tmp_path / "b", ignore=shutil.ignore_patterns("special_tokens_map.json")
    )
    path = tmp_path / "b" / "tokenizer_config.json"
    said = json.loads(path.read_text())
    del said["pad_token"]
    path.write_text(json.dumps(said))
    assert checkpoint.load(tmp_path / "b")[1].tokenizer.pad_token_id == 834


def test_the_codebook_has_unit_length(official_folder):
    codebook = Janus.load(official_folder).net.model.vqmodel.quantize.embedding.weight
    assert torch.allclose(codebook.norm(dim=-1), torch.ones(len(codebook)))


def test_dtype_and_attention(parts, janus, tmp_path):
    janus.save(tmp_path / "m")
    half = Janus.load(tmp_path / "m", dtype=torch.bfloat16)
    assert (
        half.dtype == torch.bfloat16
        and Janus.load(tmp_path / "m", dtype=None).dtype == torch.float32
    )
    from secondlook.engine.engine import Engine
    from secondlook.types import Request, SamplingParams

    drawn = []
    for attention in ("sdpa", "eager"):
        engine = Engine(Janus.load(tmp_path / "m", attention=attention))
        assert packing.attention(engine.janus.net) == attention
        segments = engine.template.draw("a photo of a cat")
        drawn.append(
            engine.draw(
                [Request("draw", segments, 0)],
                SamplingParams("code", guidance=3.0, temperature=0.0),
            )[0].tokens
        )
    assert drawn[0] == drawn[1]
    with pytest.raises(InputError, match="attention: 'flash'"):
        Janus.load(tmp_path / "m", attention="flash")


def test_peak_memory(official_folder):
    """The model and a few tensors, not the model twice."""
    program = (
        "import sys; from pathlib import Path; from secondlook.models.janus import checkpoint\n"
        "import transformers.models.janus.modeling_janus\n"
        "memory = lambda key: int(open('/proc/self/status').read().split(key)[1].split()[0]) * "
        "1024\n"
        "before = memory('VmRSS:')\n"
        "net, _ = checkpoint.load(Path(sys.argv[1]))\n"
        "print((memory('VmHWM:') - before) / sum(t.nbytes for t in net.state_dict().values()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(official_folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) <= 1.2


@pytest.mark.parametrize(("size", "count"), [("1b", 2.077e9), ("7b", 7.408e9)])
def test_full_size_on_meta(size, count):
    """Names are those of the tiny checkpoint with more layers; the count is the published one."""
    with torch.device("meta"), no_init_weights():
        net = JanusForConditionalGeneration._from_config(
            convert.config_of(fullsize.config(size), 100581)
        )
    names = {name for name, _ in convert.to_original(net.state_dict().items())}
    with torch.device("meta"):
        assert {
            n for name in names for n in convert.to_transformers(name, torch.empty(3, 1))
        } == set(net.state_dict())
    tiny = {
        s["name"]
        for s in json.loads(
            (Path(__file__).parents[1] / "golden/official_tiny/params.json").read_text()
        )["tensors"]
    }
    layer = {"language_model.model.layers.", "vision_model.vision_tower.blocks."}
    assert {n for n in tiny if not convert.UNUSED.fullmatch(n)} <= names
    assert all(any(n.startswith(start) for start in layer) for n in names - tiny)
    assert abs(sum(p.numel() for p in net.parameters()) - count) < 1e6


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"transformer.h.0.attn": torch.zeros(3)}, folder / "model.safetensors")


def misshapen(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": torch.zeros(3, 5)}, folder / "model.safetensors")


def lacking(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.generation_head.vision_head.bias"]
    save_file(tensors, folder / "model.safetensors")


def lost_shard(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-7.safetensors"}})
    )


def hostile(folder):
    class Hostile:
        def __reduce__(self):
            return exec, (f"open({str(folder / 'owned')!r}, 'w')",)

    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Hostile(), file)


def other_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def no_config(folder):
    (folder / "config.json").write_text("{")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def other_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<begin_of_image>", "<picture>"))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


BROKEN = {
    cut: r"model\.safetensors' is not a whole weight file: \S+ is cut off",
    foreign: (
        r"model\.safetensors' holds 'transformer\.h\.0\.attn', "
        r"which its config\.json has no place for"
    ),
    misshapen: r"model\.safetensors': lm_head\.weight has the shape \(3, 5\)",
    lacking: r"lacks 1 tensors .* the first is model\.generation_head\.vision_head\.bias",
    lost_shard: r"index\.json' names model-7\.safetensors, which is not there",
    hostile: r"pytorch_model\.bin' is not a whole weight file",
    other_model: r"config\.json' says model_type 'llama'",
    no_config: r"config\.json' cannot be read as JSON",
    no_tokenizer: r"holds no tokenizer\.json",
    other_tokenizer: r"has no <begin_of_image>; it must be Janus's",
    no_weights: r"holds neither model\.safetensors nor pytorch_model\.bin",
}


@pytest.mark.parametrize("harm", list(BROKEN), ids=lambda h: h.__name__)
def test_broken_checkpoints_get_one_sentence(janus, tmp_path, harm, monkeypatch, capsys):
    janus.save(tmp_path / "m")
    harm(tmp_path / "m")
    with pytest.raises(InputError, match=BROKEN[harm]) as caught:
        Janus.load(tmp_path / "m")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(
        sys, "argv", ["secondlook", "convert", str(tmp_path / "m"), str(tmp_path / "new")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and {p.name for p in tmp_path.iterdir()} == {"m"}
    assert not (tmp_path / "m" / "owned").exists()


def test_a_shard_size_that_is_none(official_folder, tmp_path):
    with pytest.raises(InputError, match="shard_size: 'big' is no size"):
        checkpoint.convert_checkpoint(official_folder, tmp_path / "new", "big")
    assert not list(tmp_path.iterdir())


def test_sizes_without_words_in_the_original_layout(janus, tmp_path):
    janus.save(tmp_path / "m")
    with pytest.raises(
        InputError, match=r"vision_config\.hidden_size 32 cannot be said in the original layout"
    ):
        checkpoint.convert_checkpoint(tmp_path / "m", tmp_path / "o")
    with pytest.raises(InputError, match="exists; name a new folder"):
        checkpoint.convert_checkpoint(tmp_path / "m", tmp_path / "m")
    assert {p.name for p in tmp_path.iterdir()} == {"m"}


def test_weights_in_8_bits():
    """A quarter of the memory; what is drawn is about as likely to the model as it is to itself."""
    torchao = pytest.importorskip(
        "torchao.quantization", reason="torchao (the extra int8) is not installed"
    )
    whole, small = Janus.load("mini"), Janus.load("mini").in_8_bits()
    engine = Engine(small)
    requests = [
        Request("draw", engine.template.draw("a photo of a red star"), seed) for seed in range(4)
    ]
    turns = engine.draw(requests, SamplingParams("code", guidance=3.0, top_k=50))
    with torch.no_grad():
        scored = sampling.score(whole, engine.template, turns)
    gap = scored - torch.tensor([p for t in turns for p in t.logprobs])
    assert gap.isfinite().float().mean() > 0.99 and gap[gap.isfinite()].abs().mean() < 0.1
    weight = small.net.model.language_model.layers[0].mlp.down_proj.weight
    assert weight.qdata.dtype == torch.int8
    layer = torch.nn.Linear(1024, 512, bias=False)
    with fast_linear(torch.device("cpu")), torch.inference_mode():
        large = torch.nn.Sequential(layer)
        quantized = copy.deepcopy(large)
        torchao.quantize_(quantized, torchao.Int8WeightOnlyConfig())
        x = torch.randn(3, 1024)
        assert (quantized(x) - large(x)).abs().max() < 0.05


def test_auto_is_half_precision_on_a_gpu_alone(tmp_path):
    """What training writes is float32, and a GPU draws in bfloat16; what is stored in half
    precision stays as it is."""
    cpu, cuda, apple = map(torch.device, ("cpu", "cuda", "mps"))
    single, brain, half = torch.float32, torch.bfloat16, torch.float16
    assert [inference_dtype(cpu, t) for t in (single, brain, half, None)] == [single] * 4
    on_cuda = [inference_dtype(cuda, t) for t in (single, brain, half, None)]
    assert on_cuda == [brain, brain, half, brain]
    assert [inference_dtype(apple, t) for t in (single, brain, None)] == [single, brain, None]
    Janus.load("mini-base", dtype=brain).save(tmp_path / "m")
    assert (
        Janus.load(tmp_path / "m", dtype="auto").dtype == single
        and Janus.load(tmp_path / "m", dtype=None).dtype == brain
    )
