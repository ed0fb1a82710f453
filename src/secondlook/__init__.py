"""Models that draw an image, take a second look, and draw again.

>>> import secondlook
>>> model = secondlook.load("mini")
>>> episode = model.draw("a photo of a red star and a blue cat", rounds=3, seed=0)
>>> episode.image, episode.verdict.yes, episode.verdict.reason

Names are imported when they are first used, so that ``import secondlook`` takes no time and no
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secondlook.api import Model, load
    from secondlook.errors import InputError, Stopped
    from secondlook.registry import (
        register_benchmark,
        register_generator,
        register_prompts,
        register_reward,
        register_sanity_pairs,
    )
    from secondlook.streaming import PartialImage
    from secondlook.train.rl.algorithms import Algorithm, register_algorithm
    from secondlook.training import train_rl, train_sft
    from secondlook.types import (
        Episode,
        EpisodeFinished,
        Prompt,
        Round,
        Verdict,
        VerdictGiven,
    )

    __version__: str

_MODULES = {
    "Algorithm": "train.rl.algorithms",
    "Episode": "types",
    "EpisodeFinished": "types",
    "InputError": "errors",
    "Model": "api",
    "PartialImage": "streaming",
    "Prompt": "types",
    "Round": "types",
    "Stopped": "errors",
    "Verdict": "types",
    "VerdictGiven": "types",
    "load": "api",
    "register_algorithm": "train.rl.algorithms",
    "register_benchmark": "registry",
    "register_generator": "registry",
    "register_prompts": "registry",
    "register_reward": "registry",
    "register_sanity_pairs": "registry",
    "train_rl": "training",
    "train_sft": "training",
}
"""Where each public name is defined."""

__all__ = [
    "Algorithm",
    "Episode",
    "EpisodeFinished",
    "InputError",
    "Model",
    "PartialImage",
    "Prompt",
    "Round",
    "Stopped",
    "Verdict",
    "VerdictGiven",
    "__version__",
    "load",
    "register_algorithm",
    "register_benchmark",
    "register_generator",
    "register_prompts",
    "register_reward",
    "register_sanity_pairs",
    "train_rl",
    "train_sft",
]


if not TYPE_CHECKING:  # a checker knows the names above, and no others

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            value: Any = _version()
        elif name in _MODULES:
            value = getattr(import_module(f"secondlook.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module 'secondlook' has no attribute {name!r}")
        globals()[name] = value
        return value


def _version() -> str:
    """The installed version; "unknown" in a source tree that was not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("secondlook")
    except PackageNotFoundError:
        return "unknown"


def __dir__() -> list[str]:
    """The public names and a module's own (``__doc__``, ``__path__`` …), not what this file
    imports for itself."""
    own_names = [name for name in globals() if name.startswith("__")]
    return sorted({*own_names, *__all__})
