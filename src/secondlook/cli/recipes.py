"""The settings that come along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondlook.cli.common import console, say

recipes_app = typer.Typer(
    invoke_without_command=True, help="List the settings that come along, or copy one to edit."
)


@recipes_app.callback()
def list_recipes(context: typer.Context) -> None:
    """List the settings that come along; --config takes these names."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from secondlook.recipes import recipe_names, title_of

    table = Table("recipe", "what it is for", box=None)
    for name in recipe_names():
        table.add_row(name, title_of(name))
    console.print(table, soft_wrap=False)


@recipes_app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="A recipe's name, as `secondlook recipes` lists it.")],
    target: Annotated[Path, typer.Argument(help="New file, or the folder for it.")],
) -> None:
    """Copy a recipe to a file of one's own."""
    from secondlook.recipes import copy_recipe

    say(f"written to {copy_recipe(name, target)}; use it with --config")
