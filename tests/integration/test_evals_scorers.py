"""Scorers that answer questions: asked as the released code asks, whatever stands in the batch."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from secondlook.errors import InputError
from secondlook.evals.benchmark import Row
from secondlook.evals.compbench import CompBenchScorer, asked_phrases
from secondlook.evals.dpg_bench import DPGBench, dpg_score
from secondlook.evals.scorers.clip import Clip
from secondlook.evals.scorers.questions import DependentQuestions
from secondlook.evals.scorers.vqa import Blip


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
