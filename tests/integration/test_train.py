"""Training: a killed job ends with the weights of an uninterrupted one; short jobs learn; Muon
orthogonalises."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from secondlook.config import load, parse
from secondlook.data.build_config import BuildConfig
from secondlook.errors import InputError
from secondlook.mini.pretrain.config import BaseConfig
from secondlook.mini.pretrain.image_tokenizer import TokenizerConfig, cluster, describe
from secondlook.mini.pretrain.new_janus import text_tokenizer
from secondlook.mini.pretrain.vision_encoder import VisionConfig, train_vision
from secondlook.recipes import FOLDER as RECIPES
from secondlook.train.muon import orthogonalize
from secondlook.train.rl.config import RLConfig
from secondlook.train.schedule import Schedule
from secondlook.train.sft_config import SFTConfig
from secondlook.train.trainer import Trainer

JOBS = {
    "tokenizer": TokenizerConfig,
    "vision": VisionConfig,
    "base": BaseConfig,
    "data": BuildConfig,
    "sft": SFTConfig,
    "rl": RLConfig,
    "other": BaseConfig,
}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("mini/*.toml")), ids=lambda p: p.stem)
def test_shipped_configs_fit_their_jobs(path):
    name = path.stem.removeprefix("edit_").removeprefix("other_")
    load(JOBS[name.partition("_")[0]], path, [])


SMALL = [
    "steps=60",
    "width=32",
    "layers=1",
    "batch_size=16",
    "runtime.save_every=10",
    "runtime.log_every=5",
    "runtime.threads=1",
    "runtime.device=cpu",
]


def vision_command(folder, out) -> list[str]:
    config = folder / "vision.toml"
    config.write_text("seed = 3\n")
    return [
        sys.executable,
        "-m",
        "secondlook",
        "train",
        "vision",
        "--config",
        str(config),
        "--out",
        str(out),
    ] + [part for s in SMALL for part in ("--set", s)]


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(vision_command(tmp_path, whole), check=True, capture_output=True)
    process = subprocess.Popen(
        vision_command(tmp_path, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (killed / "states" / "step-00000010").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "final").exists(), "it was killed before its end"
    subprocess.run(vision_command(tmp_path, killed), check=True, capture_output=True)
    a, b = (load_file(p / "final" / "model.safetensors") for p in (whole, killed))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    rows = [
        [json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()]
        for p in (whole, killed)
    ]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]


@pytest.mark.slow
def test_base_training_resumes_exactly_and_learns(tmp_path, parts):
    from secondlook.mini.pretrain.base_model import train_base

    small = {"tokenizer": str(parts / "vq"), "vision": str(parts / "vision"), "vocabulary": 600}
    small |= {
        "width": 32,
        "layers": 1,
        "heads": 2,
        "inner": 64,
        "optim": {"warmup_steps": 3},
        "runtime": {"device": "cpu", "log_every": 5, "save_every": 10},
    }
    small |= {"draws": 8, "questions": 4, "chains": 2}
    train_base(BaseConfig(**small, steps=20), tmp_path / "whole")

    class Stop(Exception):
        pass

    original, calls = Trainer.save, []

    def save_once(self):
        original(self)
        calls.append(self.step)
        if self.step == 10:
            raise Stop

    Trainer.save = save_once
    try:
        with pytest.raises(Stop):
            train_base(BaseConfig(**small, steps=20), tmp_path / "cut")
    finally:
        Trainer.save = original
    torch.manual_seed(99)  # whatever the process did in between must not matter
    train_base(BaseConfig(**small, steps=20), tmp_path / "cut")
    a, b = (load_file(tmp_path / p / "final" / "model.safetensors") for p in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    rows = [
        json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["draw_loss"] < rows[0]["draw_loss"] - 0.5


@pytest.mark.slow
def test_base_goes_on_from_a_checkpoint_with_questions_only(tmp_path, janus):
    from secondlook.mini.pretrain.base_model import train_base

    janus.save(tmp_path / "start")
    stage = {
        "draws": 0,
        "chains": 0,
        "questions": 4,
        "question_weights": {"there": 1.0},
        "alone": 1.0,
        "runtime": {"device": "cpu", "log_every": 1},
    }
    train_base(BaseConfig(start=str(tmp_path / "start"), steps=3, **stage), tmp_path / "out")
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert "answer_loss" in rows[-1] and "draw_loss" not in rows[-1]
    before, after = (load_file(tmp_path / p / "model.safetensors") for p in ("start", "out/final"))
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert torch.equal(
        before["model.vqmodel.decoder.conv_in.weight"],
        after["model.vqmodel.decoder.conv_in.weight"],
    )


def test_changed_config_is_refused_on_resume(tmp_path):
    small = {"layers": 1, "steps": 2, "batch_size": 4}
    runtime = {"device": "cpu", "save_every": 1, "log_every": 1}
    train_vision(VisionConfig(width=32, runtime=runtime, **small), tmp_path)
    with pytest.raises(InputError, match="width"):
        Trainer(tmp_path, VisionConfig(width=64, runtime=runtime, **small), {})


def test_a_run_of_an_earlier_layout_is_refused(tmp_path):
    """Its config had no sections and its origin no layout."""
    small = {"width": 32, "layers": 1, "steps": 2, "batch_size": 4}
    runtime = {"device": "cpu", "save_every": 1, "log_every": 1}
    train_vision(VisionConfig(runtime=runtime, **small), tmp_path)
    origin = tmp_path / "origin.json"
    stored = json.loads(origin.read_text())
    origin.write_text(json.dumps({"start": "", "versions": stored["versions"]}))
    with pytest.raises(InputError, match=r"another version of secondlook.*another folder"):
        train_vision(VisionConfig(runtime=runtime, **small), tmp_path)


def test_how_a_run_goes_on_may_change(tmp_path):
    """All of [runtime], and how many steps."""
    small = {"width": 32, "layers": 1, "batch_size": 4}
    runtime = {"device": "cpu", "save_every": 1, "log_every": 1}
    train_vision(VisionConfig(steps=2, runtime=runtime, **small), tmp_path)
    other = {"device": "cpu", "save_every": 3, "threads": 1, "report_to": ()}
    trainer = Trainer(tmp_path, VisionConfig(steps=4, runtime=other, **small), {})
    assert trainer.step == 2


def test_a_job_that_does_not_end_its_steps_is_told(tmp_path):
    trainer = Trainer(tmp_path, VisionConfig(runtime={"device": "cpu"}), {})
    steps = trainer.steps(3)
    assert next(steps) == 0
    with pytest.raises(RuntimeError, match="finish_step"):
        next(steps)


def test_config_errors_name_the_key(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("decoder_steps = 5\nchannel_multiplier = [1, 2]\n")
    assert load(TokenizerConfig, path, ["batch_size=3"]).batch_size == 3
    assert load(TokenizerConfig, path, []).channel_multiplier == (1, 2)
    for bad, word in (
        ("nonsense=1", "nonsense"),
        ("batch_size=many", "batch_size"),
        ("batch_size", "key=value"),
    ):
        with pytest.raises(InputError, match=word):
            load(TokenizerConfig, path, [bad])
    with pytest.raises(InputError, match="TOML"):
        path.write_text("steps = = 5")
        load(TokenizerConfig, path, [])


def test_unknown_kind_of_question_is_named():
    with pytest.raises(InputError, match="verdicts"):
        parse(BaseConfig, {"question_weights": {"verdicts": 1.0}})
    with pytest.raises(InputError, match="not all 0"):
        parse(BaseConfig, {"question_weights": {"there": 0.0}})


def test_orthogonalize():
    torch.manual_seed(0)
    for shape in ((8, 32), (32, 8), (16, 16)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert singular.min() > 0.5 and singular.max() < 1.4


def test_code_vectors_put_like_patches_near_each_other():
    red, blue = torch.tensor([1.0, -1, -1]), torch.tensor([-1.0, -1, 1])
    grey = torch.full((3,), 0.2)

    def patch(color, rows):
        image = grey[:, None, None].expand(3, 8, 8).clone()
        image[:, :rows] = color[:, None, None]
        return image.reshape(-1)

    empty = patch(red, 0)
    centres = torch.stack([empty, patch(red, 2), patch(red, 4), patch(blue, 2), patch(blue, 4)])
    vectors = describe(centres, colors=4, masks=4, seed=0)
    similar = vectors @ vectors.T
    assert similar[1, 2] > similar[1, 4] + 0.2 and similar[1, 3] > similar[1, 4] + 0.2
    assert torch.allclose(vectors.norm(dim=1), torch.ones(5))
    assert len(cluster(centres.repeat(10, 1), 8, seed=0)) == 5
    assert len(cluster(torch.randn(200, 12), 8, seed=0)) == 8


def test_text_tokenizer_keeps_verdicts_whole():
    words = text_tokenizer(["a photo of a red star", "Yes", "No, there is no cat."] * 20, 400)
    assert all(len(words(w, add_special_tokens=False)["input_ids"]) == 1 for w in ("Yes", "No"))
    text = "a photo of two blue cups\n\n<|Assistant|>:<begin_of_image>"
    assert words.decode(words(text, add_special_tokens=False)["input_ids"]) == text


def test_schedule_rises_and_falls():
    cosine = Schedule(100, warmup_steps=10)
    factors = [cosine.at(s) for s in range(101)]
    assert np.argmax(factors) in (9, 10) and factors[100] == pytest.approx(0, abs=1e-6)
    trapezoid = Schedule(100, lr=2.0, warmup_steps=10, linear_decay=0.25)
    rates = [trapezoid.at(s) for s in range(101)]
    assert rates[0] == 0.2 and rates[9:75] == [2.0] * 66
    assert rates[75:] == pytest.approx(np.linspace(2, 0, 26))
    assert Schedule(10, linear_decay=1.0).at(0) == 1.0, "no warm-up, no division by 0"
