"""An algorithm from a file outside the package, as docs/extending.md has it, through the command
line."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.errors import InputError
from secondlook.registry import load_plugin
from secondlook.rewards.reward import Score
from secondlook.train.rl.algorithms import algorithms, register_algorithm
from secondlook.train.rl.algorithms.base import Algorithm
from secondlook.train.rl.algorithms.checks import check_advantages, naming
from secondlook.train.rl.algorithms.grpo import GRPO
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import RLLoop
from secondlook.train.rl.trajectory import Trajectory, TrajectoryTurn
from secondlook.types import SamplingParams, Turn

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
SMALL = """
[rollout]
prompts_per_step = 2
group_size = 3
rounds = 2
[optim]
warmup_steps = 0
lr = 1e-4
[runtime]
device = "cpu"
threads = 1
log_every = 1
[reward_checks]
max_flat_steps = 9
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Path]:
    """A folder with the page's two files; the TOML is made small. What the plugin registers is
    forgotten afterwards: a worker may come back to this module, with another folder."""
    folder = tmp_path_factory.mktemp("outside")
    section = PAGE.read_text().partition("## An algorithm\n")[2]
    python, toml = re.findall(r"```(?:python|toml)\n(.*?)```", section, re.DOTALL)
    (folder / "rloo.py").write_text(python)
    (folder / "my_rl.toml").write_text(toml.replace('"mini"', '"mini-base"') + SMALL)
    yield folder
    algorithms._registered.pop("rloo", None)


def test_an_algorithm_from_a_file_trains(page, tmp_path, monkeypatch):
    monkeypatch.setenv("SECONDLOOK_PLUGINS", str(page / "rloo.py"))
    out = tmp_path / "run"
    command = ["train", "rl", "--config", str(page / "my_rl.toml"), "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--set", "steps=2"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all("loss" in row for row in rows)
    assert json.loads((out / "config.json").read_text())["algorithm_options"] == {
        "temperature": 2.0
    }


def test_its_own_settings_are_checked(page, tmp_path):
    load_plugin(str(page / "rloo.py"))
    assert "rloo" in algorithms.names()
    sentences = (
        ({"temperatur": 1.0}, r"config: algorithm_options\.temperatur is not a setting"),
        (
            {"temperature": "x"},
            r"config: algorithm_options\.temperature = 'x' is wrong: it must be",
        ),
    )
    for options, sentence in sentences:
        config = RLConfig(
            model="mini-base",
            algorithm="rloo",
            algorithm_options=options,
            runtime={"device": "cpu"},
        )
        with pytest.raises(InputError, match=sentence):
            RLLoop(config, tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    config = RLConfig(model="mini-base", algorithm="grop", runtime={"device": "cpu"})
    with pytest.raises(InputError, match="'grop' is unknown; known are grpo, ppo"):
        RLLoop(config, tmp_path)


def test_the_packages_own_names_cannot_be_taken():
    class Mine(Algorithm):
        pass

    with pytest.raises(InputError, match="choose another"):
        register_algorithm("grpo")(Mine)


def trajectories(scored: bool = True) -> list[Trajectory]:
    """Two episodes of one prompt, each a drawing and a verdict of two tokens."""
    made = []
    for value in (0.2, 0.9):
        score = Score(value, True, "") if scored else None
        turns = []
        for kind in ("draw", "judge"):
            sampled = Turn(kind, (), (1, 2), (-0.5, -0.5), SamplingParams("text"), 0)
            turns.append(TrajectoryTurn(kind, value if scored else math.nan, sampled))
        made.append(Trajectory(0, (score,), (True,), (0.5,), 0, turns))
    return made


def crediting(value) -> list[Trajectory]:
    """Trajectories whose turns all have this advantage."""
    credited = trajectories()
    for trajectory in credited:
        for turn in trajectory.turns:
            turn.advantage = value
    return credited


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, r"'mine' left the advantage of every turn NaN .*2 of 2 episodes"),
        (math.inf, r"'mine' gave a draw turn the advantage inf; it must be finite"),
        ((1.0, -math.inf), "of a token that is not finite"),
        (np.zeros((2, 2)), r"an array of shape \(2, 2\); it must be a number"),
        (np.zeros(3), r"3 numbers, but it has 2 tokens"),
        ("1.0", r"'1.0'; it must be a number"),
        (None, r"None; it must be a number"),
        ([[1.0], [1.0, 2.0]], r"must be a number"),
    ],
)
def test_advantages_that_cannot_be_learned_from_name_their_algorithm(value, says):
    with pytest.raises(InputError, match=says):
        check_advantages("mine", crediting(value))


def test_advantages_of_numbers_of_any_library_are_taken():
    for value in (0.0, 0, np.float32(0.5), torch.tensor(0.5)):
        credited = crediting(value)
        check_advantages("mine", credited)
        assert type(credited[0].turns[0].advantage) is float
    credited = crediting(np.array([0.5, 1.0]))
    check_advantages("mine", credited)
    assert credited[1].turns[1].advantage == (0.5, 1.0)
    check_advantages("mine", trajectories(scored=False))  # nothing to learn from: all masked


class Raising(Algorithm):
    def advantages(self, trajectories):
        raise KeyError("nowhere")


class Without(Algorithm):
    pass


class Listed(Raising):
    config_class = list


class NoAlgorithm:
    pass


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (NoAlgorithm, "'wrong' is .*NoAlgorithm, which is no subclass of secondlook.train.rl"),
        (Without, "Without, which lacks the method advantages"),
        (Listed, "config_class <class 'list'>; it must be a dataclass"),
    ],
)
def test_a_class_that_is_no_algorithm_is_refused_before_anything_is_loaded(
    wrong, says, tmp_path, monkeypatch
):
    monkeypatch.setitem(algorithms._registered, "wrong", wrong)
    monkeypatch.setattr("secondlook.train.rl.loop.open_prompts", None)
    config = RLConfig(model="mini-base", algorithm="wrong", runtime={"device": "cpu"})
    with pytest.raises(InputError, match=says):
        RLLoop(config, tmp_path)


def test_what_an_algorithm_raises_names_it_and_the_line():
    says = r"'mine' raised KeyError: 'nowhere' \(test_.*py, line"
    with pytest.raises(InputError, match=says), naming(Raising, "mine"):
        Raising.advantages(None, [])
    with pytest.raises(KeyError), naming(GRPO, "grpo"):  # a fault of the package's own
        raise KeyError
    with pytest.raises(torch.OutOfMemoryError), naming(Raising, "mine"):
        raise torch.OutOfMemoryError


def test_a_step_that_nothing_is_credited_in_stops_the_run(page, tmp_path, monkeypatch):
    class Silent(Algorithm):
        def advantages(self, trajectories):
            pass

    monkeypatch.setitem(algorithms._registered, "silent", Silent)
    command = ["train", "rl", "--config", str(page / "my_rl.toml"), "--out", str(tmp_path / "run")]
    settings = ["steps=1", "algorithm=silent", "algorithm_options={}", "rollout.prompts_per_step=1"]
    for setting in settings:
        command += ["--set", setting]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, InputError)
    assert "algorithm: 'silent' left the advantage of every turn NaN" in str(done.exception)
