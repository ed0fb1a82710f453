"""An algorithm from a file outside the package, as docs/extending.md has it, through the command
line."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.errors import InputError
from secondlook.registry import load_plugin
from secondlook.train.rl.algorithms import algorithms, register_algorithm
from secondlook.train.rl.algorithms.base import Algorithm
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import RLLoop

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
def page(tmp_path_factory) -> Path:
    """A folder with the page's two files; the TOML is made small."""
    folder = tmp_path_factory.mktemp("outside")
    section = PAGE.read_text().partition("## An algorithm\n")[2]
    python, toml = re.findall(r"```(?:python|toml)\n(.*?)```", section, re.DOTALL)
    (folder / "rloo.py").write_text(python)
    (folder / "my_rl.toml").write_text(toml.replace('"mini"', '"mini-base"') + SMALL)
    return folder


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
