"""What the scripts here share: ending with one sentence for bad input, and pages of templates."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, select_autoescape

from secondlook.errors import InputError
from secondlook.io import versions

# the package's own templates too: they have the style and the filmstrips
_PAGES = Environment(
    loader=ChoiceLoader(
        [FileSystemLoader(Path(__file__).parent / "templates"), PackageLoader("secondlook")]
    ),
    autoescape=select_autoescape(),
)


def page(template: str, **values: Any) -> str:
    """One of templates/ with its values."""
    return _PAGES.get_template(template).render(versions=versions(), **values)


def run_script(function: Callable[..., None]) -> None:
    """Run a function with the command line's arguments; InputError ends with its sentence and exit
    code 2."""
    try:
        typer.run(function)
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def named_folders(results: list[str]) -> list[tuple[str, Path]]:
    """NAME=FOLDER, taken apart. Raises InputError."""
    named_paths = []
    for named_folder in results:
        name, separator, folder = named_folder.partition("=")
        if not (name and separator and folder):
            raise InputError(
                f"results: {named_folder!r} is not NAME=FOLDER; write for example "
                "base=out/mini/base"
            )
        named_paths.append((name, Path(folder)))
    return named_paths
