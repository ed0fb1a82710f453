"""What is added from files outside the package, used through the command line.

A benchmark: tests/integration/test_extending_benchmark.py. An algorithm:
tests/integration/test_extending_algorithm.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.errors import InputError

REWARD = """
from secondlook.registry import register_reward, register_sanity_pairs
from secondlook.types import Prompt
from PIL import Image

CALLS = []

@register_reward("test-brightness")
def brightness(prompt, image, floor: float = 0.0):
    CALLS.append(prompt)
    if len(CALLS) % 7 == 0:
        return None
    return max(floor, image.convert("L").getpixel((24, 24)) / 255)

@register_sanity_pairs("test-white")
def white(seed, prompt_options):
    prompt = Prompt("a photo of a star")
    white, black = (Image.new("RGB", (48, 48), color) for color in ("white", "black"))
    return [(prompt, white)], [(prompt, black)]
"""
CONFIG = """
model = "mini-base"
prompts = "mini"
sanity_pairs = "test-white"
steps = 2

[prompt_options.kinds]
colored = 1.0

[rollout]
prompts_per_step = 2
group_size = 4
rounds = 2

[runtime]
threads = 1
log_every = 1

[reward_checks]
max_flat_steps = 9
max_missing = 0.5

[[rewards]]
kind = "test-brightness"
floor = 0.125
"""


@pytest.fixture
def outside(tmp_path, clean_registries) -> Path:
    """A folder with a reward and a config."""
    (tmp_path / "brightness.py").write_text(REWARD)
    (tmp_path / "rl.toml").write_text(CONFIG)
    return tmp_path


def train(folder: Path, *before: str, settings: tuple[str, ...] = ()):
    command = [*before, "train", "rl", "--config", str(folder / "rl.toml")]
    command += ["--out", str(folder / "run"), *settings]
    return CliRunner().invoke(app, command)


def test_a_reward_from_a_file_trains_two_steps(outside):
    result = train(outside, "--plugin", str(outside / "brightness.py"))
    assert result.exit_code == 0, result.exception
    rows = [
        json.loads(line)
        for line in (outside / "run" / "metrics.jsonl").read_text().split("\n")
        if line
    ]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0.125 <= row["score"] < 1 and row["missing"] > 0 for row in rows)
    stored = json.loads((outside / "run" / "config.json").read_text())
    assert stored["rewards"] == [
        {"kind": "test-brightness", "weight": 1.0, "settings": {"floor": 0.125}}
    ]


def test_a_reward_that_fails_its_sanity_pairs_is_refused(outside):
    file = outside / "brightness.py"
    file.write_text(REWARD.replace("max(floor,", "1 - max(floor,"))
    result = train(outside, "--plugin", str(file))
    assert "cannot tell them apart" in str(result.exception)


@pytest.mark.parametrize(
    ("before", "settings", "words"),
    [
        ((), (), "rewards: 'test-brightness' is unknown; known are local, mini, self_judge, vlm"),
        (("--plugin", "{folder}/none.py"), (), "none.py' is not a file"),
        (
            ("--plugin", "{folder}/brightness.py"),
            ("--set", 'rewards=[{kind = "test-brightness", flor = 0.1}]'),
            "rewards: flor is not a setting of 'test-brightness'; known are floor",
        ),
        (
            ("--plugin", "{folder}/brightness.py"),
            ("--set", 'rewards=[{kind = "test-brightness", floor = "low"}]'),
            "rewards: floor = 'low' is wrong: it must be a number",
        ),
        (
            ("--plugin", "{folder}/brightness.py"),
            ("--set", "prompts=some.txt"),
            "prompt_options is .*, but prompts = 'some.txt' is a file",
        ),
    ],
)
def test_what_cannot_be_used_is_one_sentence(outside, before, settings, words):
    result = train(outside, *(part.format(folder=outside) for part in before), settings=settings)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=words):
        raise result.exception


def test_a_plugin_that_ends_python_amid_a_command_is_told(tmp_path):
    plugin = tmp_path / "leaving.py"
    plugin.write_text(
        "from secondlook.registry import register_prompts\n"
        "@register_prompts('leaving')\n"
        "def prompts():\n"
        "    exit(0)\n"
    )
    command = [sys.executable, "-m", "secondlook", "--plugin", str(plugin), "train", "rl"]
    settings = [
        "prompts=leaving",
        "prompt_options={}",
        "rewards=[{kind='mini'}]",
        "runtime.device=cpu",
    ]
    for setting in settings:
        command += ["--set", setting]
    command += ["--config", "mini/rl", "--set", "model=mini", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "plugin: leaving.py, line 4, ended the program with 0" in done.stderr
