"""Automatic recovery on a toy run: it goes back on a drop, eases on a decline, and what it did
survives a kill."""

import json
from dataclasses import dataclass, field

import pytest
import torch

from secondlook.config import parse
from secondlook.errors import InputError, Stopped
from secondlook.io import fingerprint
from secondlook.train.job_config import BasicRuntimeConfig
from secondlook.train.rl.config import RecoveryConfig
from secondlook.train.rl.recovery import AutoRecovery
from secondlook.train.state_files import saved_steps
from secondlook.train.trainer import Trainer


@dataclass
class Toy:
    runtime: BasicRuntimeConfig = field(
        default_factory=lambda: BasicRuntimeConfig(log_every=1, save_every=5)
    )


class Weight:
    """One number that grows by the rate; beyond a limit the reward is gone."""

    def __init__(self):
        self.value = torch.zeros(1)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class Moved:
    """A reference that counts how often it became the policy."""

    times = 0

    def become(self, policy):
        self.times += 1


CONFIG = RecoveryConfig(window=3, drop=0.2, lr_cut=0.5, decline=0.01, patience=4, max_actions=50)


def toy(out, config=CONFIG, reward=lambda w: 0.5 + w if w < 0.3 else 0.1, stop=None):
    """Forty steps, as ``train_rl`` takes them. Interrupted amid step ``stop``, once."""
    weight, recovery, reference = Weight(), AutoRecovery(config), Moved()
    parts = {"weight": weight, "auto_recovery": recovery}
    trainer = Trainer(out, Toy(), parts, keep_steps=lambda: (recovery.good_step,))
    for step in trainer.steps(40):
        if stop is not None and step == stop and not (out / "stopped").exists():
            (out / "stopped").touch()
            raise KeyboardInterrupt
        weight.value = weight.value + 0.02 * recovery.lr_factor
        score = float(reward(float(weight.value)))
        trainer.finish_step({"score": score, "weight": float(weight.value)})
        finding = recovery.observe(score)
        if finding:
            recovery.act(finding, trainer, reference, weight)
        elif trainer.due(5):
            recovery.note_saving(trainer.step)
    return weight, recovery, reference


def test_it_goes_back_to_the_last_good_state_at_a_lower_rate(tmp_path):
    _, recovery, _ = toy(tmp_path)
    acts = [json.loads(line) for line in (tmp_path / "acts.jsonl").read_text().splitlines()]
    assert len(acts) == len(recovery.actions) >= 1
    first = acts[0]
    assert (
        first["act"] == "lower the rate and go back"
        and first["to"] < first["step"]
        and first["to"] % 5 == 0
    )
    assert first["average"] < first["best"] - 0.2 and first["lr_factor"] == 0.5
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 41)), (
        "what was taken back is not in the metrics"
    )
    weights = [r["weight"] for r in rows]
    assert (
        weights == sorted(weights)
        and max(weights) < 0.3 + 0.02 * CONFIG.window
        and recovery.lr_factor == 0.5 ** len(acts)
    )
    assert recovery.good_step in saved_steps(tmp_path)


def test_it_goes_back_to_a_state_of_before_an_earlier_action(tmp_path):
    """A decline first, and then a drop: the good state has no action in it yet."""
    weight, recovery = Weight(), AutoRecovery(CONFIG)
    trainer = Trainer(tmp_path, Toy(), {"weight": weight, "auto_recovery": recovery})
    trainer.save()
    trainer.step = 5
    recovery.act("decline", trainer)
    recovery.act("drop", trainer)
    assert trainer.step == 0
    assert [action["act"] for action in recovery.actions] == [
        "lower beta",
        "lower the rate and go back",
    ]


def test_what_it_did_survives_a_kill(tmp_path):
    weight, recovery, _ = toy(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "cut", stop=13)
    cut, recovery_cut, _ = toy(tmp_path / "cut", stop=13)
    assert (
        torch.equal(weight.value, cut.value) and recovery.state_dict() == recovery_cut.state_dict()
    )
    assert (tmp_path / "whole" / "acts.jsonl").read_text() == (
        tmp_path / "cut" / "acts.jsonl"
    ).read_text()


@pytest.mark.parametrize("on_decline", ["lower_beta", "move_reference"])
def test_it_eases_on_a_slow_decline(tmp_path, on_decline):
    config = RecoveryConfig(
        window=3, drop=0.9, decline=0.01, patience=4, on_decline=on_decline, max_actions=100
    )
    _, recovery, reference = toy(tmp_path, config, reward=lambda w: 0.9 - w / 4)
    assert recovery.actions
    if on_decline == "lower_beta":
        assert recovery.beta_factor == 0.5 ** len(recovery.actions)
    else:
        assert reference.times == len(recovery.actions)


def test_too_many_acts_stop_the_run(tmp_path):
    with pytest.raises(Stopped, match="fell again"):
        toy(
            tmp_path,
            RecoveryConfig(window=2, drop=0.1, max_actions=1),
            reward=lambda w: 0.9 if w < 0.1 else -w,
        )


def test_bad_settings_are_named():
    for bad, word in (({"lr_cut": 1.5}, "lr_cut"), ({"window": 0}, "window")):
        with pytest.raises(InputError, match=word):
            parse(RecoveryConfig, bad)


def test_without_a_config_nothing_is_done():
    assert [AutoRecovery().observe(x) for x in (1.0, 0.0, 0.0)] == ["", "", ""]


def test_a_state_that_cannot_be_read_is_passed_over(tmp_path, capsys):
    toy(tmp_path, None)
    *_, before, last = saved_steps(tmp_path)
    for file in (tmp_path / "states" / f"step-{last:08d}").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    weight = Weight()
    capsys.readouterr()
    resumed = Trainer(tmp_path, Toy(), {"weight": weight, "auto_recovery": AutoRecovery()})
    assert resumed.step == before
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("secondlook: ") and f"step-{last:08d} cannot be read (" in line
    assert float(weight.value) == pytest.approx(0.02 * before)


@pytest.mark.parametrize(
    ("changed_file", "contents"),
    [
        ("model.safetensors", bytes(10**6 - 1) + b"x"),
        ("generation_config.json", b'{"judge_rereads": true}'),
        ("chat_template.jinja", b"{{ messages }}"),
    ],
)
def test_another_checkpoint_than_it_began_with_is_refused(tmp_path, capsys, changed_file, contents):
    (tmp_path / "model.safetensors").write_bytes(bytes(10**6))
    (tmp_path / "generation_config.json").write_text("{}")
    begun = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("a note")
    assert begun == fingerprint(tmp_path)
    (tmp_path / changed_file).write_bytes(contents)
    changed = fingerprint(tmp_path)
    assert changed != begun
    run = Trainer(tmp_path / "out", Toy(), {"weight": Weight()}, weights=begun)
    run.save()
    with pytest.raises(InputError, match="not those that"):
        Trainer(tmp_path / "out", Toy(), {"weight": Weight()}, weights=changed)
    origin = tmp_path / "out" / "origin.json"
    origin.write_text(origin.read_text().replace('"torch": "', '"torch": "9'))
    capsys.readouterr()
    Trainer(tmp_path / "out", Toy(), {"weight": Weight()}, weights=begun)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("secondlook: ") and "was begun with torch 9" in line
