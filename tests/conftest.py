"""Shared fixtures: a tiny untrained Janus (real classes, real tokenizer), and the benchmark files
where they are at hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from folders import BENCHMARKS, GOLDEN


@pytest.fixture(autouse=True)
def quick_intervals(monkeypatch, request):
    """A twentieth of the resamples, where intervals are not what is tested."""
    if "resampled" not in request.node.name:
        monkeypatch.setattr("secondlook.evals.intervals.RESAMPLES", 100)


@pytest.fixture
def clean_registries(monkeypatch):
    """What a test registers from outside the package is forgotten after it."""
    from secondlook import registry

    monkeypatch.setattr(registry, "_plugins", set())
    yield
    for group in ("rewards", "benchmarks", "prompts", "sanity_pairs", "generators"):
        registered = getattr(registry, group)._registered
        for name, thing in list(registered.items()):
            if not registry.origin(thing).startswith("secondlook."):
                del registered[name]


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    if not BENCHMARKS.is_dir():
        pytest.skip(f"the public benchmark files are not at {BENCHMARKS}")
    return BENCHMARKS


@pytest.fixture(scope="session")
def official_folder(tmp_path_factory) -> Path:
    """A checkpoint in the original layout, made from names; what the original code answers with it
    is recorded."""
    folder = tmp_path_factory.mktemp("official") / "checkpoint"
    shutil.copytree(GOLDEN / "official_tiny" / "tokenizer", folder)
    make = [
        sys.executable,
        str(GOLDEN / "make_weights.py"),
        str(GOLDEN / "official_tiny"),
        str(folder),
    ]
    subprocess.run(make, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """An untrained tokenizer and seeing encoder on disk."""
    from tiny_model import write_parts

    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder)
    return folder


@pytest.fixture(scope="session")
def janus(parts):
    """A tiny Janus with random weights whose codes and verdicts are varied."""
    from tiny_model import tiny_janus

    return tiny_janus(parts)


@pytest.fixture(scope="session")
def engine(janus):
    from secondlook.engine.engine import Engine

    return Engine(janus)


@pytest.fixture(scope="module")
def judge_url():
    """Address of a judge's server with the models of ``cases/unfriendly_judge.py``."""
    from judge_server import Server

    with Server() as server:
        yield server.url


@pytest.fixture
def add_model(monkeypatch):
    """Adds a model to that server for one test: ``add_model(name, answer)``, where ``answer`` gets
    a request's body."""
    from judge_server import unfriendly

    return lambda name, answer: monkeypatch.setitem(unfriendly.MODELS, name, answer)
