"""Where metrics go beside metrics.jsonl: the real TensorBoard, and fakes of wandb and trackio."""

import json
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
from PIL import Image

from secondlook.errors import InputError
from secondlook.train.job_config import BasicRuntimeConfig
from secondlook.train.trackers import CaptionedImage, check_trackers, episode_strip
from secondlook.train.trainer import Trainer
from secondlook.types import Episode, Prompt, Round

STRIP = CaptionedImage(Image.new("RGB", (20, 10), "red"), "a red picture | 1. Yes (P(yes) 1.00)")


@dataclass
class Toy:
    runtime: BasicRuntimeConfig


def train(out, report_to, last_step=3, interrupted_at=None) -> None:
    """Steps with a loss of 1, 2, 3 …, and a picture after each."""
    runtime = BasicRuntimeConfig(log_every=1, save_every=1, report_to=report_to)
    trainer = Trainer(out, Toy(runtime), {})
    for step in trainer.steps(last_step):
        if step == interrupted_at:
            raise KeyboardInterrupt
        trainer.finish_step({"loss": step + 1.0})
        trainer.log_images("episodes", [STRIP])


class FakeWandb(ModuleType):
    """Keeps what it is told, by the run's id."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.logged, self.defined, self.finished = [], {}, [], 0

    def init(self, **settings):
        self.inits.append(settings)
        rows = self.logged.setdefault(settings["id"], [])
        outer = self

        class Run:
            def define_metric(self, name, step_metric):
                outer.defined.append((name, step_metric))

            def log(self, row):
                rows.append(row)

            def finish(self):
                outer.finished += 1

        return Run()

    def Image(self, image, caption):
        return ("wandb image", image.size, caption)


class FakeTrackio(ModuleType):
    def __init__(self):
        super().__init__("trackio")
        self.inits, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.inits.append(settings)

    def log(self, row, step):
        self.logged.append((step, row))

    def finish(self):
        self.finished += 1

    def Image(self, image, caption):
        return ("trackio image", image.size, caption)


def test_tensorboard_has_metrics_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [event.step for event in events.Images("episodes/0")] == [1, 2, 3]
    assert events.Images("episodes/0")[0].width == 20
    [text_tag] = events.Tags()["tensors"]
    text = events.Tensors(text_tag)[0].tensor_proto.string_val[0].decode()
    assert text == STRIP.caption


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_PROJECT", "")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ["wandb"], interrupted_at=2)
    assert wandb.finished == 1, "it is closed also where the run is interrupted"
    train(tmp_path, ["wandb"])
    [rows] = wandb.logged.values()
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [row["step"] for row in rows if "episodes" in row] == [1, 2, 3]
    assert rows[1]["episodes"] == [("wandb image", (20, 10), STRIP.caption)]
    first, second = wandb.inits
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["project"] == "secondlook" and first["name"] == tmp_path.name
    assert first["config"]["runtime"]["save_every"] == 1
    assert wandb.defined[0] == ("*", "step") and wandb.finished == 2


def test_trackio_has_metrics_and_pictures_under_the_folders_name(tmp_path, monkeypatch):
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    train(tmp_path, ["trackio"])
    [settings] = trackio.inits
    assert settings["project"] == "mine" and settings["name"] == tmp_path.name
    assert settings["resume"] == "allow"
    losses = [(step, row["loss"]) for step, row in trackio.logged if "loss" in row]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.0)]
    picture = ("trackio image", (20, 10), STRIP.caption)
    assert (2, {"episodes/0": picture}) in trackio.logged and trackio.finished == 1


def test_metrics_jsonl_is_written_whatever_the_trackers(tmp_path):
    train(tmp_path, [])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert not (tmp_path / "tensorboard").exists()


def test_a_missing_library_is_named_before_the_run_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("secondlook.train.trackers.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(InputError, match="report_to has 'trackio', which is not installed; run"):
        train(tmp_path / "out", ["trackio"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="choose from tensorboard, wandb, trackio"):
        check_trackers(["mlflow"])


def test_a_filmstrip_has_the_source_and_every_round():
    rounds = (
        Round(Image.new("RGB", (8, 8), "red"), (), False, 0.25, "No, it is red."),
        Round(Image.new("RGB", (8, 8), "blue"), (), True, 0.75, "Yes."),
    )
    source = Image.new("RGB", (8, 8), "green")
    strip = episode_strip(Episode(Prompt("make it blue", source), 0, rounds, ()))
    assert strip.image.size == (8 * 3 + 4 * 2, 8)
    colours = [strip.image.getpixel((x, 4)) for x in (4, 10, 16, 28)]
    assert colours == [(0, 128, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)]
    assert strip.caption == (
        "make it blue | 1. No, it is red. (P(yes) 0.25) | 2. Yes. (P(yes) 0.75)"
    )
