"""The shipped recipes: settings of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondlook.cli.common import say

recipes_app = typer.Typer(
    invoke_without_command=True, help="List the shipped recipes, or copy one to edit."
)


@recipes_app.callback()
def list_recipes(context: typer.Context) -> None:
    """List the shipped recipes, settings of jobs; --config takes these names."""
    if context.invoked_subcommand is not None:
        return
    from secondlook.recipes import recipe_names, title_of

    names = recipe_names()
    longest_name = max(map(len, names))
    for name in names:
        say((f"{name:{longest_name}}", "bold"), f"  {title_of(name)}")


@recipes_app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="A recipe's name, as `secondlook recipes` lists it.")],
    target: Annotated[Path, typer.Argument(help="New file, or the folder for it.")],
) -> None:
    """Copy a recipe to a file of one's own."""
    from secondlook.recipes import copy_recipe

    say(f"written to {copy_recipe(name, target)}; use it with --config")
