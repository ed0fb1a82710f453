"""Public benchmarks: GenEval's rules by hand, every pipeline with tiny random models, resuming,
refusing to mix, real files."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from secondlook.cli import app, main
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.errors import InputError
from secondlook.evals import fetch, gedit, records, report, runner
from secondlook.evals.benchmark import VALUE_IN_UNIT, Row, get_benchmark
from secondlook.evals.compbench import CompBench, CompBenchScorer, asked_phrases
from secondlook.evals.dpg_bench import DPGBench, dpg_score
from secondlook.evals.dsg import DSG
from secondlook.evals.gedit import GEdit
from secondlook.evals.geneval import GenEval, GenEvalLong, ObjectColors, verdict
from secondlook.evals.pie_bench import PIEBench, mask_of
from secondlook.evals.pope import POPE, SPLITS
from secondlook.evals.records import EvalSettings
from secondlook.evals.scorers.background import LEAST_MSE, background
from secondlook.evals.scorers.clip import Clip
from secondlook.evals.scorers.detector import CLASSES, DetectedObject, Detector
from secondlook.evals.scorers.questions import DependentQuestions
from secondlook.evals.scorers.vqa import Blip
from secondlook.models.shipped import locate
from secondlook.types import WorkerShard

ROWS = [
    {
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "prompt": "a photo of a bench",
    },
    {
        "tag": "two_object",
        "include": [{"class": "cat", "count": 1}, {"class": "cup", "count": 1}],
        "prompt": "a photo of a cat and a cup",
    },
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "colors",
        "include": [{"class": "cup", "count": 1, "color": "red"}],
        "prompt": "a photo of a red cup",
    },
    {
        "tag": "position",
        "include": [
            {"class": "cat", "count": 1},
            {"class": "dog", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of a dog left of a cat",
    },
]


def box(name, x, y, confidence=0.95, side=20):
    return DetectedObject(name, (x, y, x + side, y + side), confidence, np.ones((64, 64), bool))


def no_colors(boxes):
    raise AssertionError("no colour was asked for")


def test_rules_of_geneval():
    single, two, counting, colors, position = ROWS
    assert verdict(single, [box("bench", 0, 0, 0.31)], no_colors)[0]
    assert not verdict(single, [box("bench", 0, 0, 0.30)], no_colors)[0], (
        "above the threshold, not at it"
    )
    assert not verdict(two, [box("cat", 0, 0)], no_colors)[0]
    assert verdict(two, [box("cat", 0, 0), box("cup", 9, 9), box("cup", 30, 30)], no_colors)[0], (
        "more are no harm"
    )
    two_clocks = [box("clock", 0, 0), box("clock", 30, 0)]
    assert verdict(counting, [*two_clocks, box("clock", 0, 30, 0.9)], no_colors)[0], (
        "0.9 is not above 0.9"
    )
    right, why = verdict(counting, [*two_clocks, box("clock", 0, 30, 0.91)], no_colors)
    assert not right and why == "expected clock<3, found 3"
    # only the most confident boxes are asked for their colour
    cups = [box("cup", 0, 0, 0.6), box("cup", 30, 0, 0.8)]
    assert verdict(
        colors, cups, lambda boxes: ["red" if b.confidence == 0.8 else "blue" for b in boxes]
    )[0]
    assert not verdict(colors, cups, lambda boxes: ["blue"] * len(boxes))[0]
    cat = box("cat", 40, 0)
    assert verdict(position, [cat, box("dog", 0, 0)], no_colors)[0]
    assert not verdict(position, [cat, box("dog", 42, 0)], no_colors)[0], (
        "too near to be left of it"
    )
    right, why = verdict(position, [box("dog", 0, 0)], no_colors)
    assert not right and "no target" in why, "a clause that failed is no target"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny Mask2Former, CLIP, BLIP and DINO with random weights, as folders."""
    from transformers import (
        AutoTokenizer,
        BertTokenizer,
        BlipConfig,
        BlipForQuestionAnswering,
        CLIPConfig,
        CLIPModel,
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SwinConfig,
        ViTConfig,
        ViTModel,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.mask2former.image_processing_pil_mask2former import (
        Mask2FormerImageProcessorPil,
    )

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(locate("mini"))
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
    }
    text |= {
        "num_attention_heads": 2,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    text |= {"pad_token_id": words.pad_token_id}
    seen = {
        "image_size": 32,
        "patch_size": 16,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
    }
    seen |= {"num_attention_heads": 2}
    stages = [f"stage{i}" for i in range(1, 5)]
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=stages,
    )
    small = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 16,
    }
    small |= {
        "dim_feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "num_queries": 8,
    }
    detector = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=swin, num_labels=80, **small)
    )
    torch.nn.init.normal_(
        detector.class_predictor.weight, std=4.0
    )  # sure of itself, so that there is something to judge
    clip = CLIPModel(
        CLIPConfig(
            text_config=text | {"projection_dim": 8},
            vision_config=seen | {"projection_dim": 8},
            projection_dim=8,
        )
    )
    known = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *[
            "yes",
            "no",
            "a",
            "the",
            "red",
            "cup",
            "cat",
            "clock",
            "is",
            "there",
            "in",
            "picture",
            "side",
            "and",
            "?",
        ],
    ]
    asked = {
        "vocab_size": len(known) + 2,
        "bos_token_id": len(known),
        "sep_token_id": 3,
        "pad_token_id": 0,
    }  # [DEC], [ENC]
    blip = BlipForQuestionAnswering(
        BlipConfig(
            text_config=text | asked | {"encoder_hidden_size": 16, "initializer_range": 1.0},
            vision_config=seen | {"initializer_range": 1.0},
            image_text_hidden_size=16,
        )
    )
    for name, model in (
        ("detector", detector),
        ("clip", clip),
        ("blip", blip),
        ("dino", ViTModel(ViTConfig(**seen))),
    ):
        model.save_pretrained(folder / name)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(
        folder / "detector"
    )
    CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder / "clip")
    words.save_pretrained(folder / "clip")
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "blip")
    (folder / "vocab.txt").write_text("\n".join(known))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "blip")
    return folder


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with a small GenEval in place of the real one."""
    path = tmp_path / "data" / "geneval" / "evaluation_metadata.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    name = "geneval/evaluation_metadata.jsonl"
    changed = replace(fetch.FILES[name], sha256=sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(fetch.FILES, name, changed)
    return tmp_path / "data"


def test_geneval_from_prompts_to_the_page(models, data, tmp_path, monkeypatch, capsys):
    """20 pictures by `mini`, a detector and a CLIP of random weights; then the numbers again from
    the files alone."""
    out = tmp_path / "out"
    command = [
        "eval",
        "geneval",
        "--model",
        "mini",
        "--data",
        str(data),
        "--out",
        str(out),
        "--fresh",
        "2",
    ]
    command += [
        "--detector",
        str(models / "detector"),
        "--clip",
        str(models / "clip"),
        "--batch",
        "16",
    ]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    result = json.loads((out / "result.json").read_text())
    assert result["images"] == 20 and result["rows"] == 5 and result["missing"] == 0
    assert result["settings"]["judge"] == f"{models / 'detector'} and {models / 'clip'}"

    scores = {
        s["picture"]: s
        for p in out.glob("scores-*.jsonl")
        for s in map(json.loads, p.read_text().splitlines())
    }
    records = [
        json.loads(line)
        for p in out.glob("episodes-*.jsonl")
        for line in p.read_text().splitlines()
    ]
    assert set(scores) == {p.name for p in (out / "pictures").iterdir()}
    assert all(s["objects"] or not s["value"] for s in scores.values()) and any(
        s["objects"] for s in scores.values()
    )
    for name in ("first", "final"):
        by_task: dict = {}
        for r in records:
            chosen = r["rounds"][0 if name == "first" else r["final"]]
            by_task.setdefault(r["task"], []).append(scores[chosen["picture"]]["value"])
        means = {t: sum(v) / len(v) for t, v in by_task.items()}
        assert result["overall"][name]["mean"] == pytest.approx(sum(means.values()) / 5)
        assert {t: result["tasks"][t][name]["mean"] for t in means} == pytest.approx(means)
    assert [c["rounds"] for c in result["curve"]] == [1, 2, 3] and len(result["best_of_n"]) == 3
    assert (out / "benchmark.html").read_text().count("<figure") >= 5 and (
        out / "curve.png"
    ).exists()

    before = (out / "result.json").read_bytes()
    (out / "result.json").unlink()
    monkeypatch.setattr(
        runner, "run_episodes", lambda *_: pytest.fail("what is drawn is not drawn again")
    )
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (out / "result.json").read_bytes() == before
    monkeypatch.setattr("sys.argv", ["secondlook", *command, "--rounds", "2"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "rounds is 2 but" in capsys.readouterr().err


def test_processes_share_the_jobs_and_resume(data, tmp_path):
    from secondlook.cli.common import load_engine

    engine, every = load_engine("mini"), GenEval(model="mini", data=data).rows()
    sampling = SamplingConfig.of(engine.janus.net.generation_config)
    settings = EvalSettings("geneval", "mini", 2, 1, 0, 0, 1.0)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for out in (alone, shared):
        records.begin(out, settings, {})
    runner.draw(engine, every, settings, sampling, alone)
    runner.draw(engine, every, settings, sampling, shared, WorkerShard(0, 2))
    assert not records.all_drawn(shared, every, settings)
    with open(shared / "episodes-000.jsonl", "a") as file:
        file.write('{"row": 4, "k"')  # killed while writing
    for rank in (0, 1, 2):  # the rest, by another number of processes
        runner.draw(engine, every, settings, sampling, shared, WorkerShard(rank, 3))
    assert records.all_drawn(shared, every, settings)
    key = lambda r: (r["row"], r["k"])  # noqa: E731
    both = [sorted(records.stored(out, "episodes"), key=key) for out in (alone, shared)]
    assert both[0] == both[1] and len(both[0]) == 10, "each once, and the same whoever draws"

    class Failing:
        def __call__(self, items):
            return ["it failed" if row.task == "colors" else {"value": 1.0} for row, _ in items]

    with pytest.raises(Exception, match=r"2 of 10 pictures got none \(2: it failed\)"):
        runner.score_pictures(Failing(), every, settings, alone)
    result = report.summarize(
        GenEval(model="mini"),
        settings,
        records.stored(alone, "episodes"),
        records.read_scores(alone, VALUE_IN_UNIT),
        records.missing_reasons(alone),
    )
    assert result["missing"] == 2 and result["overall"]["first"]["mean"] == 1.0, "missing, not 0"
    assert result["overall"]["images"] == result["images"] == 8
    assert [(m["id"], m["sample"], m["why"]) for m in result["left_out"]] == [
        ("00003", k, "it failed") for k in (0, 1)
    ]


def test_detector_and_colours(models):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    found = Detector(str(models / "detector"))(image)
    assert found and all(
        f.mask.shape == (48, 48) and f.confidence > 0.3 and f.name in CLASSES for f in found
    )
    x1, y1, x2, y2 = found[0].box
    assert found[0].mask[int(y1) : int(y2), int(x1) : int(x2)].sum() == found[0].mask.sum()
    colors = ObjectColors(Clip(str(models / "clip")))
    assert len(colors(image, found)) == len(found)
    assert colors.word_embeddings(found[0].name).shape == (10, 8)
    with pytest.raises(InputError, match="no Mask2Former"):
        Detector(str(models / "nothing"))


def test_blip_is_asked_as_released(models, tmp_path):
    """BLIPvqa_eval of T2I-CompBench step by step: 480 x 480 pixels, [ENC] first, signs away, the
    first token's yes and no."""
    from transformers import BlipConfig, BlipForQuestionAnswering

    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    given = BlipForQuestionAnswering.from_pretrained(models / "blip").eval()
    weights = given.state_dict()
    name = "vision_model.embeddings.position_embedding"
    first, rest = (
        weights[name][:, :1],
        weights[name][:, 1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2),
    )
    rest = torch.nn.functional.interpolate(rest, (30, 30), mode="bicubic", align_corners=False)
    weights[name] = torch.cat([first, rest.flatten(2).transpose(1, 2)], 1)
    config = BlipConfig.from_pretrained(models / "blip")
    config.vision_config.image_size = 480
    blip = BlipForQuestionAnswering(config).eval()
    blip.load_state_dict(weights)

    pixels = np.asarray(image.resize((480, 480), Image.Resampling.BICUBIC), np.float32) / 255
    pixels = (pixels - (0.48145466, 0.4578275, 0.40821073)) / (0.26862954, 0.26130258, 0.27577711)
    words = (models / "vocab.txt").read_text().split("\n")
    dec, enc = len(words), len(words) + 1
    p = {}
    for opening in (enc, words.index("[CLS]")):
        ids = [opening, *map(words.index, ["a", "red", "cup", "?"]), words.index("[SEP]")]
        with torch.inference_mode():
            seen = blip.vision_model(
                torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
            ).last_hidden_state
            read = blip.text_encoder(
                torch.tensor([ids]), encoder_hidden_states=seen
            ).last_hidden_state
            logits = blip.text_decoder(torch.tensor([[dec]]), encoder_hidden_states=read).logits[
                0, 0
            ]
        yes, no = logits.softmax(-1)[[words.index("yes"), words.index("no")]].tolist()
        p[opening] = yes / (yes + no)
    asked = Blip(str(models / "blip"))
    assert asked([('A "red" cup.?', image)]) == [pytest.approx(p[enc], abs=1e-4)]
    assert abs(p[enc] - p[words.index("[CLS]")]) > 1e-2, "or this would show nothing"

    torch.nn.init.constant_(asked.model.text_decoder.cls.predictions.bias, float("nan"))
    assert asked([("a cup?", image)]) == [None], "what is no number is missing"
    shutil.copytree(models / "blip", tmp_path / "blip")
    said = json.loads((tmp_path / "blip" / "config.json").read_text())
    said["text_config"]["bos_token_id"] += 1
    (tmp_path / "blip" / "config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"\[ENC\] is missing"):
        Blip(str(tmp_path / "blip"))
    said["vision_config"]["image_size"] = 64
    (tmp_path / "blip" / "config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"vqa: .* is no BLIP"):
        Blip(str(tmp_path / "blip"))


def test_questions_of_compbench_dsg_and_dpg(models, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    blip = Blip(str(models / "blip"), batch=2)
    scorer = CompBenchScorer(blip, lambda text: text.split(" and "), Clip(str(models / "clip")))
    items = [("a red cup?", image), ("is there a clock in the picture?", image), ("a cat?", image)]
    together, alone = blip(items), [blip([i])[0] for i in items]
    assert together == pytest.approx(alone, abs=1e-4) and all(0 < p < 1 for p in together), (
        "padding is not seen"
    )
    row = Row("color-000", "a red cup and the side and a cat", "color")
    [color] = scorer([(row, image)])
    assert [phrase for phrase, _ in color["p_yes"]] == ["a red cup", "a cat"]
    assert color["value"] == pytest.approx(np.prod([p for _, p in color["p_yes"]]))
    [twice] = scorer([(replace(row, prompt="a cat and a cat"), image)])
    assert twice["value"] == pytest.approx(color["p_yes"][1][1] ** 2), (
        "a phrase that stands there twice counts twice"
    )
    [nothing] = scorer([(replace(row, prompt="the side"), image)])
    assert nothing["value"] == 1.0, "as released, where there is no noun phrase"
    [cosine] = scorer([(replace(row, task="non_spatial"), image)])
    assert -1 <= cosine["value"] <= 1
    table = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    table += (
        "a_1,a red cup,1,0,entity - whole (cup),Is there a cup?\na_1,a red "
        'cup,2,1,"attribute - color (cup, red)",Is it red?\n'
    )
    (tmp_path / "dpg_bench").mkdir()
    (tmp_path / "dpg_bench" / "dpg_bench.csv").write_text(table)
    [question] = DPGBench(model="mini", data=tmp_path).rows()
    [scored] = DependentQuestions(blip, dpg_score)([(question, image)])
    assert [a[0] for a in scored["answers"]] == [
        "entity - whole (cup)",
        "attribute - color (cup, red)",
    ]
    assert asked_phrases("…", lambda text: ["The left", "top"]) == ["The left"]
    assert not asked_phrases("…", lambda _: ["top"])


def test_pie_and_gedit(models, tmp_path, monkeypatch):
    from misbehaving import Judge

    rng = np.random.default_rng(0)
    source = Image.fromarray(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8))
    folder = tmp_path / "pie_bench"
    (folder / "annotation_images").mkdir(parents=True)
    source.save(folder / "annotation_images" / "one.png")
    told = {
        "image_path": "one.png",
        "editing_prompt": "a [red] cup",
        "editing_instruction": "make it red",
    }
    told |= {"editing_type_id": "6", "mask": [512 * 100 + 50, 3, 512 * 101 + 50, 2]}
    (folder / "mapping_file.json").write_text(json.dumps({"000": told}))
    benchmark = PIEBench(
        model="mini", data=tmp_path, clip=str(models / "clip"), dino=str(models / "dino")
    )
    [row] = benchmark.rows()
    assert row.task == "color" and row.facts["target"] == "a red cup"
    mask = mask_of(row.facts["mask"])
    assert (
        mask[1:-1, 1:-1].sum() == 5
        and mask[100, 50:53].all()
        and mask[0].all()
        and mask[:, -1].all()
    )
    pie = benchmark.scorer("cpu")
    [same] = pie([(row, source)])
    assert (
        same["mse"] == 0
        and same["ssim"] == pytest.approx(1, abs=1e-3)
        and same["structure"] == pytest.approx(0, abs=1e-10)
    )
    changed = np.asarray(source).copy()
    changed[100, 50:53] = 0
    inside = pie([(row, Image.fromarray(changed))])[0]
    assert inside["mse"] == 0, "what lies in the mask does not count"
    changed[200, 200] = 255 - changed[200, 200]
    assert background(source, Image.fromarray(changed), mask)["psnr"] < same["psnr"]
    with Judge(share=0) as server:
        scorer = GEdit(model="mini", url=server.url, vqa="m").scorer("cpu")
        [why] = scorer([(row, source)])
        assert (
            why.startswith("no two scores of what was edited: ")
            and "its answer has no two scores" in why
        )
        monkeypatch.setattr(gedit, "text_of", lambda _: 'so: {"scores": [9, 4]}')
        [scored] = scorer([(row, source)])
        assert scored == {
            "overall": pytest.approx(4.0),
            "semantic_consistency": 4.0,
            "quality": 4.0,
        }


def test_pie_says_what_its_number_is():
    row = {name: {"mean": 27.0, "low": 26.0, "high": 28.0} for name in ("first", "final")}
    lines = PIEBench(model="mini").lines({"overall": row | {"images": 2}, "tasks": {}})
    assert lines[0].strip().startswith("PSNR in dB") and lines[0].endswith("higher is better")
    assert len(lines) == 2 and "27.000 [26.000, 28.000]" in lines[1]
    row["images"] = 2
    assert len(DSG(model="mini").lines({"overall": row, "tasks": {}})) == 1


def test_background_by_hand():
    source = Image.new("RGB", (32, 32), (0, 0, 0))
    edited = np.zeros((32, 32, 3), np.uint8)
    edited[:8] = 255
    mask = np.zeros((32, 32), bool)
    mask[:4] = True
    found = background(source, Image.fromarray(edited), mask)
    assert found["mse"] == pytest.approx(4 / 32) and found["psnr"] == pytest.approx(
        10 * np.log10(8)
    )
    assert background(source, source, mask)["psnr"] == pytest.approx(10 * np.log10(1 / LEAST_MSE))
    assert np.isnan(background(source, source, np.ones_like(mask))["psnr"])


def test_what_is_missing_is_said(tmp_path):
    for call, said in (
        (lambda: DPGBench(model="mini").rows(), "dpg_bench.csv"),
        (lambda: PIEBench(model="mini", data=tmp_path).rows(), "mapping_file.json"),
        (lambda: get_benchmark("genevil"), "'genevil' is unknown"),
        (lambda: GEdit(model="mini").judge(), "vqa: BLIP answers yes or no"),
        (lambda: GenEval(), "model: it is missing"),
        (lambda: GenEval(model="mini", rounds=0), "rounds: 0 is wrong"),
        (lambda: GenEval(model="mini", vqa="m"), "vqa: 'm' is wrong"),
    ):
        with pytest.raises(InputError, match=said):
            call()


def test_the_real_files(benchmarks, tmp_path):
    given = {"model": "mini", "data": benchmarks}
    every = GenEval(**given).rows()
    assert len(every) == 553 and len(GenEvalLong(**given).rows()) == 553
    assert {c["class"] for r in every for c in r.facts["include"]} <= set(CLASSES)
    for row in every:  # objects laid out as asked pass, and without the last clause's they do not
        assert verdict(
            row.facts, (laid := laid_out(row.facts)), lambda boxes: [b.color for b in boxes]
        )[0], row.prompt
        last = row.facts["include"][-1]["class"]
        assert not verdict(
            row.facts, [f for f in laid if f.name != last], lambda boxes: [b.color for b in boxes]
        )[0]
    assert len(CompBench(**given).rows()) == 1200
    with pytest.raises(InputError, match=r"4a7d36259ad94d238a6e7e7e0bd6b643.png' is missing"):
        GEdit(**given, images=tmp_path).rows()
    for key in json.loads((benchmarks / "gedit" / "gedit_edit.json").read_text()).values():
        (tmp_path / key["id"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key["id"]).touch()
    edited = GEdit(**given, images=tmp_path).rows()
    assert len(edited) == 604 and len({r.task for r in edited}) == 11
    asked = DSG(**given).rows()
    assert len(asked) == 1060 and sum(len(r.facts["questions"]) for r in asked) == 8182
    pope = POPE(**given, images=tmp_path)
    assert len(pope.rows()) == 9000
    with pytest.raises(InputError, match="lacks 500 pictures, first COCO_val2014"):
        pope.check()


class Laid(DetectedObject):
    """A found object whose colour is known."""

    color = ""


def laid_out(row):
    """Objects as a row asks for them, side by side or where its relation wants them."""
    offsets = {"left of": (-100, 0), "right of": (100, 0), "above": (0, -100), "below": (0, 100)}
    placed, corners = [], []
    for i, clause in enumerate(row["include"]):
        dx, dy = offsets[clause["position"][0]] if "position" in clause else (0, 300 * i)
        for k in range(clause["count"]):
            f = Laid(
                clause["class"],
                (dx + 30 * k, dy, dx + 30 * k + 20, dy + 20),
                0.95,
                np.ones((4, 4), bool),
            )
            object.__setattr__(f, "color", clause.get("color", ""))
            placed.append(f)
        corners.append((dx, dy))
    return placed


def test_pope_from_questions_to_the_page(tmp_path, monkeypatch):
    """The model's own answers about pictures that are there; a small file in place of each of the
    three."""
    rng = np.random.default_rng(0)
    (tmp_path / "coco").mkdir()
    (tmp_path / "pope").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(
            tmp_path / "coco" / name
        )
    asked = [
        {
            "question_id": i,
            "image": f"{'ab'[i % 2]}.png",
            "text": "is there a red star?",
            "label": "no",
        }
        for i in range(4)
    ]
    for split in SPLITS:
        path = tmp_path / "pope" / f"coco_pope_{split}.json"
        path.write_text("".join(json.dumps(q) + "\n" for q in asked))
        name = f"pope/{path.name}"
        monkeypatch.setitem(
            fetch.FILES,
            name,
            replace(fetch.FILES[name], sha256=sha256(path.read_bytes()).hexdigest()),
        )
    command = [
        "eval",
        "pope",
        "--model",
        "mini",
        "--data",
        str(tmp_path),
        "--images",
        str(tmp_path / "coco"),
    ]
    run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    told = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert result["questions"] == len(told) == 12 and all(
        a["answer"] in ("Yes", "No") for a in told
    )
    no = sum(a["answer"] == "No" for a in told) / 12
    assert result["overall"]["accuracy"] == pytest.approx(no) and not result["left_out"]
    assert "released evaluate.py" in (tmp_path / "out" / "pope.html").read_text()

    # two processes: each its share, whoever ends last writes the result; what is answered is not
    # asked again
    shared = tmp_path / "shared"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert CliRunner().invoke(app, [*command, "--out", str(shared)]).exit_code == 0
        lines = (shared / f"answers-00{rank}.jsonl").read_text().splitlines()
        assert len(lines) == 6 and (shared / "result.json").exists() == (rank == "1")
    assert json.loads((shared / "answers.json").read_text()) == told
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    (shared / "answers-001.jsonl").write_text("\n".join(lines[:5]) + '\n{"id": "adv')
    asked_again, write = [], Engine.write
    monkeypatch.setattr(Engine, "write", lambda *a: asked_again.append(len(a[1])) or write(*a))
    assert CliRunner().invoke(app, [*command, "--out", str(shared)]).exit_code == 0
    assert asked_again == [1] and json.loads((shared / "answers.json").read_text()) == told
    other = CliRunner().invoke(app, [*command, "--only", "1", "--out", str(shared)])
    assert isinstance(other.exception, InputError) and "only is 1 but" in str(other.exception)


@pytest.mark.slow
def test_all_benchmarks_of_a_miniature(tmp_path):
    command = [
        "eval",
        "all",
        "--model",
        "mini",
        "--only",
        "1",
        "--rounds",
        "2",
        "--out",
        str(tmp_path),
    ]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert (
        set(result["benchmarks"]) == {"mini-geneval", "mini-curve", "mini-questions", "mini-pie"}
        and not result["skipped"]
    )
    assert 'href="mini-geneval/mini-geneval.html"' in (tmp_path / "all.html").read_text()
    mixed = CliRunner().invoke(app, [*command, "--only", "2"])
    assert isinstance(mixed.exception, InputError) and "only is 2 but" in str(mixed.exception)
    data = tmp_path / "data"
    data.mkdir()
    public = CliRunner().invoke(
        app,
        [
            "eval",
            "all",
            "--model",
            "mini",
            "--suite",
            "public",
            "--data",
            str(data),
            "--out",
            str(tmp_path / "p"),
        ],
    )
    assert public.exit_code == 0, public.output
    skipped = json.loads((tmp_path / "p" / "result.json").read_text())["skipped"]
    public = {"geneval", "geneval-long", "compbench", "dsg", "dpg", "pie", "gedit", "pope"}
    assert set(skipped) == public and "evaluation_metadata.jsonl" in skipped["geneval"]
