"""Settings that come with the package: the paper's for 1B and 7B, and the miniature's.

A recipe is a TOML file in this folder. Its name is its path without the ending: ``7b/grpo``.
"""

from __future__ import annotations

import re
import textwrap
from difflib import get_close_matches
from pathlib import Path

from secondlook.errors import InputError
from secondlook.io import is_file, read_text, write_text

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(name_of(path) for path in FOLDER.rglob("*.toml"))


def name_of(path: Path) -> str:
    """A recipe's name; of a file elsewhere, its name without the ending."""
    if path.is_relative_to(FOLDER):
        return path.relative_to(FOLDER).with_suffix("").as_posix()
    return path.stem


def title_of(name: str) -> str:
    """The first sentence of a recipe's comment, which says what it is for."""
    comment: list[str] = []
    for line in read_text(FOLDER / f"{name}.toml").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    sentence = re.split(r"[.;]\s", " ".join(comment))[0].rstrip(".")
    return textwrap.shorten(sentence, 100, placeholder=" …")


def find_config(config: str | Path) -> Path:
    """The TOML file that ``--config`` means: a file, else the recipe of that name.

    Raises InputError where there is neither.
    """
    path = Path(config)
    if is_file(path):
        return path
    name, names = path.as_posix().removesuffix(".toml"), recipe_names()
    if name in names:
        return FOLDER / f"{name}.toml"
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    example = nearest[0] if nearest else "mini/rl"
    raise InputError(
        f"config: {str(config)!r} is not a file and not a recipe; give a TOML file, or a name that "
        f"`secondlook recipes` lists, such as {example}"
    )


def copy_recipe(name: str, target: Path) -> Path:
    """Copy a recipe to ``target``, or into it where it is a folder. Returns the new file.

    Raises InputError for an unknown name, and where the file exists already.
    """
    if name.removesuffix(".toml") not in recipe_names():
        known = ", ".join(recipe_names())
        raise InputError(f"recipe: {name!r} is not a recipe; known are {known}")
    source = FOLDER / f"{name.removesuffix('.toml')}.toml"
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise InputError(f"target: {str(target)!r} exists already; give a new file")
    write_text(target, read_text(source))
    return target
