"""The data factory: prompts of every origin, generators, overlap with benchmarks, resuming, and
what others read of it."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from misbehaving import Judge
from secondlook.cli import app
from secondlook.data import decontaminate
from secondlook.data.build_config import BuildConfig
from secondlook.data.expand import ExpandConfig
from secondlook.data.generate import build
from secondlook.data.generators import Diffusers, GeneratorConfig, Shard, make_generator
from secondlook.data.sft_dataset import Pool
from secondlook.data.stored_images import check_built
from secondlook.errors import InputError
from secondlook.rewards.reward import Score
from secondlook.types import Prompt, WorkerShard

BENCHMARKS = Path(__file__).parents[3] / "shared" / "benchmarks"
COLORS = {
    "red": (200, 30, 30),
    "green": (30, 180, 30),
    "blue": (30, 30, 200),
    "grey": (128, 128, 128),
}


class Named:
    """A judge that believes in colours: 1 for the named one, .6 for grey, 0 for another."""

    calls = 0

    def __call__(self, items):
        Named.calls += len(items)
        found = []
        for prompt, image in items:
            color = next(c for c in COLORS if c in prompt)
            pixel = np.asarray(image)[4, 4]
            value = (
                1.0
                if np.abs(pixel - np.array(COLORS[color])).max() < 30
                else 0.6
                if np.ptp(pixel) < 20
                else 0.0
            )
            found.append(
                Score(value, value >= 0.5, f"it is {color if value == 1 else 'something else'}")
            )
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pictures of each prompt: right, grey, and two equal wrong ones."""
    out = tmp_path_factory.mktemp("pictures")
    rows = []
    for thing in ("wall", "door", "house"):
        for color in ("red", "green", "blue"):
            wrong = "blue" if color == "red" else "red"
            for k, shown in enumerate((color, "grey", wrong, wrong)):
                name = f"{color}-{thing}-{k}.png"
                Image.new("RGB", (9 + len(thing), 9), COLORS[shown]).save(out / name)
                rows.append({"file_name": name, "prompt": f"a {color} {thing}"})
    (out / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return out


def config(folder, **more) -> BuildConfig:
    words = {"color": ["red", "green", "blue"], "thing": ["wall", "door", "house"]}
    generators = [GeneratorConfig("folder", str(folder), images=9, licence="CC0-1.0")]
    return BuildConfig(generators, templates=["a {color} {thing}"], words=words, shard=4, **more)


def nothing(model):
    raise AssertionError("no model is needed")


def test_pictures_scores_examples_and_a_manifest(folder, tmp_path):
    out = build(config(folder), Named(), tmp_path, nothing)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["prompts"] == 9 and len(manifest["shards"]) == 3
    [source] = manifest["sources"].values()
    assert source == {
        "pictures": 27,  # the second wrong one is the same
        "right": 18,
        "missing": 0,
        "positives": 9,
        "negatives": 9,
        "licence": "CC0-1.0",
    }
    shown = CliRunner().invoke(app, ["show", str(out)], env={"COLUMNS": "200"})
    assert "prompts: 9" in shown.output and f"samples: {out / 'samples.html'}" in shown.output
    for name, digest in manifest["sha256"].items():
        assert sha256((out / name).read_bytes()).hexdigest() == digest
    files = {
        k: [str(p) for p in sorted(out.glob(f"{k}-*.parquet"))] for k in ("images", "examples")
    }
    images = datasets.load_dataset(
        "parquet", data_files=files["images"], split="train", cache_dir=str(tmp_path / "c")
    )
    assert images[0]["image"].size[1] == 9 and len(set(images["id"])) == 27
    scores = dict(zip(images["id"], images["score"], strict=True))
    found = datasets.load_dataset(
        "parquet", data_files=files["examples"], split="train", cache_dir=str(tmp_path / "c")
    )
    tasks = [r["task"] for r in found]
    assert (
        {t: tasks.count(t) for t in set(tasks)}
        == manifest["examples"]["tasks"]
        == {"draw": 9, "judge": 18, "redraw": 9}
    )
    for row in found:
        assert all(scores[i] < 0.5 for i in row["earlier"]) and row["target"] not in row["earlier"]
        assert row["task"] == "judge" or scores[row["target"]] >= 0.8
        assert row["answer"].startswith("Yes" if scores[row["target"]] >= 0.5 else "No")
    assert sum(scores[r["target"]] >= 0.7 for r in found if r["task"] == "judge") == 9, (
        "as many right as wrong"
    )
    page = (out / "samples.html").read_text()
    assert page.count("<h2>") in (1, 4) and page.count("<figure>") == 3 * page.count("<h2>")


def test_webdataset(folder, tmp_path):
    out = build(config(folder, examples="webdataset"), Named(), tmp_path, nothing)
    found = []
    for path in map(str, sorted(out.glob("examples-*.tar"))):
        found += datasets.load_dataset(
            "webdataset", data_files=[path], split="train", cache_dir=str(tmp_path / "c")
        )
    assert len(found) == 36 and {"draw", "judge", "redraw"} == {r["json"]["task"] for r in found}
    for row in found:
        assert row["target.png"].size[1] == 9
        assert ("earlier1.png" in row) == bool(row["json"]["earlier"])


@pytest.mark.parametrize("stop", ["drawing", "judging"])
def test_a_stopped_build_goes_on(folder, tmp_path, monkeypatch, stop):
    whole = build(config(folder), Named(), tmp_path / "whole", nothing)

    class Broken(Named):
        def __call__(self, items):
            if stop == "judging" and (tmp_path / "cut" / "images-00000.parquet").exists():
                raise KeyboardInterrupt
            return super().__call__(items)

    with monkeypatch.context() as patch:
        if stop == "drawing":
            read = Image.open
            count = iter(range(20))

            def broken(*args, **kwargs):
                if next(count, None) is None:
                    raise KeyboardInterrupt
                return read(*args, **kwargs)

            patch.setattr("secondlook.io.images.Image.open", broken)
        with pytest.raises(KeyboardInterrupt):
            build(config(folder), Broken(), tmp_path / "cut", nothing)
    assert not (tmp_path / "cut" / "manifest.json").exists()
    Named.calls = 0
    cut = build(config(folder), Named(), tmp_path / "cut", nothing)
    assert stop == "drawing" or Named.calls == 15, "what was scored is not scored again"
    for name in sorted(p.name for p in whole.glob("*-*.parquet")):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    assert not (cut / "parts").exists()
    with pytest.raises(InputError, match="seed is 7"):
        build(config(folder, seed=7), Named(), cut, nothing)


def test_processes_share_a_build(folder, tmp_path):
    """Three shards among two processes; the second one is there first, writes no manifest, and the
    files are the same."""
    alone = build(config(folder), Named(), tmp_path / "alone", nothing)
    shared = tmp_path / "shared"
    build(config(folder), Named(), shared, nothing, WorkerShard(1, 2))
    assert [p.name for p in sorted(shared.glob("images-*"))] == ["images-00001.parquet"] and not (
        shared / "manifest.json"
    ).exists()
    build(config(folder), Named(), shared, nothing, WorkerShard(0, 2))
    one, two = (json.loads((out / "manifest.json").read_text()) for out in (alone, shared))
    assert one == two and sorted(p.name for p in alone.iterdir()) == sorted(
        p.name for p in shared.iterdir()
    )


def test_prompts_of_benchmarks_are_left_out(folder, tmp_path):
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"prompt": "A red wall."}\n{"text": "the green door"}\n')
    out = build(config(folder, against=[str(bench)]), Named(), tmp_path / "out", nothing)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["left_out"]["overlap with a benchmark"] == 2 and manifest["prompts"] == 7
    near = decontaminate.Benchmarks(
        ["a photo of a red bench and a blue bird on the left of the old wooden house"]
    )
    assert "a photo of a red bench and a blue bird on the left of an old wooden house!" in near
    assert (
        "a photo of a red bench" not in near
        and "a blue bird on a green bench beside the old house" not in near
    )
    bench.write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"row 1 .* has no text named"):
        decontaminate.read(bench)


def test_real_benchmarks_prompts():
    if not BENCHMARKS.exists():
        pytest.skip("the benchmarks' files are not here")
    geneval = decontaminate.read(BENCHMARKS / "geneval" / "evaluation_metadata.jsonl")
    known = decontaminate.Benchmarks(geneval)
    assert len(geneval) == 553 and all(p in known for p in geneval)
    assert "a watercolour of three foxes who read the newspaper" not in known


def test_a_language_model_makes_captions(folder, tmp_path):
    captions = ["a red wall", "a blue door in the wall", "a red wall"]
    with Judge(share=0, text=json.dumps(captions)) as server:
        e = ExpandConfig(server.url, "m", short=1, long=2)
        seeds = tmp_path / "seeds.txt"
        seeds.write_text("walls\n")
        generators = [GeneratorConfig("folder", str(folder), images=9)]
        asked = BuildConfig(generators, prompts=str(seeds), expand=e)
        out = build(asked, Named(), tmp_path / "out", nothing)
        with pytest.raises(InputError, match="use one process"):
            build(asked, Named(), tmp_path / "two", nothing, WorkerShard(0, 2))
    said = [json.loads(line)["prompt"] for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert (
        said == captions[:2]
        and json.loads((out / "manifest.json").read_text())["left_out"]["twice"] == 1
    )


def test_the_published_layout_is_read(folder, tmp_path):
    path = folder / "published.jsonl"
    data = [
        {"img_path": "red-wall-0.png", "reason": "it is red", "prob": 0.97, "state": True},
        {"img_path": "red-wall-2.png", "reason": "No, it is blue", "prob": 0.02, "state": False},
        {"img_path": "red-wall-1.png", "reason": "it is grey", "prob": None, "state": None},
    ]
    path.write_text(json.dumps({"promptid": 5, "prompt": "a red wall", "data": data}) + "\n")
    pool = Pool(path)
    example = pool.read(pool.redrawing(np.random.default_rng(0)))
    assert (
        example.target.reason == "Yes, it is red" and example.earlier[0].reason == "No, it is blue"
    )
    assert np.asarray(example.target.image)[4, 4].tolist() == list(COLORS["red"])
    path.write_text('{"prompt": "a red wall"}\n')
    with pytest.raises(InputError, match="line 1"):
        Pool(path)


def test_bad_settings_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="generators is empty"):
        BuildConfig([])
    with pytest.raises(InputError, match="model is empty"):
        GeneratorConfig("model")
    with pytest.raises(InputError, match="size"):
        build(
            replace(config(folder), templates=["a {size} {color} wall"]), Named(), tmp_path, nothing
        )
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        build(config(tmp_path / "copy"), Named(), tmp_path / "out", nothing)


def test_what_a_folder_has_beyond_and_lacks_is_named(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("1", "2", "3", "other", "unlisted"):
        Image.new("RGB", (48, 48), (len(name), 0, 0)).save(pictures / f"{name}.png")
    star = "a photo of a red star"
    rows = [(f"{k}.png", star) for k in (1, 2, 3)] + [("other.png", "a photo of a cat")]
    text = "".join(
        json.dumps({"file_name": name, "prompt": prompt}) + "\n" for name, prompt in rows
    )
    (pictures / "metadata.jsonl").write_text(text)
    (tmp_path / "prompts.txt").write_text(f"{star}\na photo of a blue cup\n")
    settings = f"prompts = '{tmp_path}/prompts.txt'\nshard = 1\nexamples = 'none'\n"
    (tmp_path / "c.toml").write_text(
        f"{settings}[[generators]]\nkind = 'folder'\nmodel = '{pictures}'\nimages = 2\n"
        "[[rewards]]\nkind = 'mini'\n"
    )
    command = [
        "data",
        "build",
        "--config",
        str(tmp_path / "c.toml"),
        "--out",
        str(tmp_path / "out"),
    ]
    for _ in range(2):  # the second time nothing is left to do
        run = CliRunner().invoke(app, command)
        assert run.exit_code == 0, run.exception
        told = [line for line in run.output.splitlines() if "pictures)" in line]
        assert told == [
            f"pictures of prompts that are not asked ({pictures}): 1 (other.png)",
            f"pictures beyond images = 2 ({pictures}): 1 (3.png)",
            f"pictures that metadata.jsonl does not name ({pictures}): 1 (unlisted.png)",
            f"prompts without a picture ({pictures}): 1 (a photo of a blue cup)",
        ]
    with pytest.raises(
        InputError,
        match=r"metadata\.jsonl' has no picture of any of the 9 prompts \(the first: 'a ",
    ):
        build(config(pictures), Named(), tmp_path / "none", nothing)


def test_all_pictures_of_a_folder_that_cannot_be_used_are_named_at_once(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no picture")
    Image.new("RGB", (48, 48)).save(tmp_path / "fine.png")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a star\n")

    def attempt(*names: str) -> str:
        row = '{{"file_name": "{}", "prompt": "a photo of a star"}}\n'
        (tmp_path / "metadata.jsonl").write_text("".join(row.format(name) for name in names))
        own = BuildConfig(
            [GeneratorConfig("folder", str(tmp_path), images=9)], str(prompts), examples="none"
        )
        with pytest.raises(InputError) as error:
            build(own, Named(), tmp_path / "out", nothing)
        assert not (tmp_path / "out" / "parts").exists()
        return str(error.value)

    said = attempt("fine.png", *(f"{i}.png" for i in range(5)))
    assert said.startswith("generators: 5 pictures cannot be used: line 2 of ")
    assert said.count("is not a file") == 3 and said.endswith("; and 2 more")
    said = attempt("torn.png", "fine.png", "torn.png")
    assert said.startswith("generators: 2 pictures cannot be used: line 1 of ") and "line 3" in said


def test_a_pipeline_draws_fewer_where_memory_is_short():
    """A batch that does not fit is tried again in halves; seeds stay with their pictures."""
    asked: list[int] = []

    def pipeline(prompt, generator, **settings):
        asked.append(len(prompt))
        if len(prompt) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SimpleNamespace(
            images=[Image.new("RGB", (1, 1), (g.initial_seed() % 256, 0, 0)) for g in generator]
        )

    drawn = {}
    for batch in (1, 16):
        generator = Diffusers.__new__(Diffusers)
        generator.model, generator.images, generator.settings = "pipeline", 4, {}
        generator.pipeline = pipeline
        generator.device, generator.seed, generator.batch = "cpu", 0, batch
        drawn[batch] = generator(Shard(0, 0, (Prompt("a cat"), Prompt("a dog")), 2))
    assert asked == [1] * 8 + [8, 4, 2, 2, 2, 2]
    for one, other in zip(drawn[1], drawn[16], strict=True):
        assert (one.prompt, one.seed, one.image.getpixel((0, 0))) == (
            other.prompt,
            other.seed,
            other.image.getpixel((0, 0)),
        )


def test_a_pipeline_of_diffusers_draws(tmp_path):
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed (the extra of that name)"
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz", *(c + "</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    words = {w: i for i, w in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=16
    )
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    block = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        **block,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        **block,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path / "pipeline")
    config = GeneratorConfig(
        "diffusers",
        str(tmp_path / "pipeline"),
        images=2,
        batch=3,
        settings={"steps": 2, "guidance": 2.0},
    )
    shard = Shard(0, 0, (Prompt("a red wall"), Prompt("a blue door")), 2)
    found = make_generator(config, nothing, 0, "cpu")(shard)
    again = make_generator(config, nothing, 0, "cpu")(shard)
    assert [p.prompt.text for p in found] == ["a red wall"] * 2 + ["a blue door"] * 2 and len(
        {p.seed for p in found}
    ) == 4
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, again, strict=True)), (
        "seeded"
    )
    assert not np.array_equal(found[0].image, found[1].image)


def test_training_waits_for_a_build_to_end(folder, tmp_path):
    out = build(config(folder), Named(), tmp_path, nothing)
    check_built(out)
    shard = next(out.glob("images-*.parquet"))
    kept = shard.rename(shard.with_suffix(".away"))
    with pytest.raises(InputError, match="is missing, which manifest"):
        check_built(out)
    kept.rename(shard)
    (out / "manifest.json").unlink()
    with pytest.raises(InputError, match="has not ended"):
        check_built(out)


def test_a_build_goes_on_with_its_own_prompts_only(folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red wall\na blue door\n")
    stated = replace(config(folder), prompts=str(prompts), templates=[])
    out = build(stated, Named(), tmp_path / "out", nothing)
    prompts.write_text("a red wall\na green door\n")
    with pytest.raises(InputError, match=r"not those of .*prompts\.jsonl"):
        build(stated, Named(), out, nothing)
