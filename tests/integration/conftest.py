"""Fixtures that several integration tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A tiny Mask2Former, CLIP, BLIP and DINO with random weights, as folders."""
    from scorer_models import write_scorer_models

    folder = tmp_path_factory.mktemp("models")
    write_scorer_models(folder)
    return folder
