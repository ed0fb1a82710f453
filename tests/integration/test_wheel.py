"""The wheel: built from the sources, installed alone beside the libraries, used outside a
checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "secondlook"
MAX_BYTES = 60_000_000
MADE_AGAIN = ("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built in a copy of the sources, so that no earlier build's files get in."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns(*MADE_AGAIN))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "."]
    subprocess.run(command, cwd=folder, check=True)
    [built] = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The ``bin`` of a new environment: the wheel, and this environment's other libraries."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", symlinks=True)
    variables = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    site = Path(sysconfig.get_path("purelib", "venv", variables))
    # links, without this package and without what .pth files add; they stand in the environment
    # itself, since dill (of datasets) pickles modules from elsewhere with all they hold
    for library in Path(sysconfig.get_path("purelib")).iterdir():
        is_here = (site / library.name).exists()
        if "secondlook" not in library.name and library.suffix != ".pth" and not is_here:
            (site / library.name).symlink_to(library)
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return folder / "venv" / "bin"


@pytest.fixture
def run(installed, tmp_path):
    """Run a command of the new environment in an empty folder, which sees no checkout."""

    def run(*command: str) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [str(installed / "python"), *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def secondlook(run, *arguments: str) -> str:
    """What a command prints. Fails where it does not end with 0."""
    done = run("-m", "secondlook", *arguments)
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
    return done.stdout


def test_it_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    found = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    wanted = set()
    for path in SOURCE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            wanted.add(path.relative_to(SOURCE.parent).as_posix())
    assert found == wanted
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_stays_small(wheel):
    size = wheel.stat().st_size
    assert size <= MAX_BYTES, f"{size / 1e6:.1f} MB"


def test_commands_outside_a_checkout(run, tmp_path):
    where = run("-c", "import secondlook; print(secondlook.__file__)").stdout
    assert str(ROOT) not in where and "venv" in where
    assert "7b/grpo" in secondlook(run, "recipes")
    secondlook(run, "recipes", "copy", "mini/rl", "rl.toml")
    assert (tmp_path / "rl.toml").is_file()
    assert "fits" in secondlook(run, "plan", "--config", "7b/grpo")
    secondlook(run, "draw", "a photo of a red star", "--n", "1", "--rounds", "2", "--out", "drawn")
    assert (tmp_path / "drawn" / "final.png").is_file()
    assert (tmp_path / "drawn" / "episode.html").is_file()
    secondlook(run, "push", "mini", "me/mini", "--dry-run", "pushed")
    assert (tmp_path / "pushed" / "model.safetensors").is_file()


def test_it_trains_by_a_copied_recipe_with_the_miniatures_own_reward(run, tmp_path):
    """The miniature's prompts and reward come in by the wheel's entry points."""
    secondlook(run, "recipes", "copy", "mini/rl", "my_rl.toml")
    path = tmp_path / "my_rl.toml"
    sizes = re.compile(r"^(prompts_per_step|group|group_size) = \d+", re.MULTILINE)
    path.write_text(sizes.sub(r"\1 = 2", path.read_text()))
    settings = ["--set", "steps=1", "--set", "model=mini"]
    secondlook(run, "train", "rl", "--config", "my_rl.toml", "--out", "rl", *settings)
    assert (tmp_path / "rl" / "final" / "model.safetensors").is_file()


@pytest.mark.slow
def test_every_page_of_the_documentation_runs_on_it(installed):
    """The tests of the pages, with the wheel in place of the sources."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    pages = str(ROOT / "tests" / "integration" / "test_docs.py")
    done = subprocess.run(
        [str(installed / "python"), "-m", "pytest", "-q", "-m", "slow or not slow", pages],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
