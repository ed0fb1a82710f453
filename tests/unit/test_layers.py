"""Who may import whom (docs/architecture.md). A room may always import itself and the root's nouns.

Imports inside functions count as well. The command line is the only room that may import the
miniature, and only inside functions.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "secondlook"
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
EVERYONE = {"types", "errors", "io", "end_request", "complaints"}
PLUGINS = {"registry", "plugin_settings"}
"""What can be added from outside: known to the rooms that ask for it."""

PICTURES = {"engine", "episode", "models"}
TEACHING = PICTURES | {"data", "rewards", "llm", "report"} | PLUGINS
DOOR = {"api", "arguments", "streaming", "training", "hub", "card"}
"""What ``import secondlook`` offers; it stands on everything but the miniature."""

MAY_IMPORT: dict[str, set[str]] = {
    "types": {"report"},  # inside a function: how an episode shows itself
    "errors": set(),
    "end_request": set(),
    "complaints": set(),
    "io": set(),
    "registry": set(),
    "plugin_settings": set(),
    "report": set(),
    "recipes": set(),
    "config": {"registry", "recipes"},
    "models": set(),
    "engine": {"models"},
    "episode": {"engine", "models"},
    "llm": set(),
    "rewards": {"llm", "engine", "models"} | PLUGINS,
    "data": PICTURES | {"rewards", "llm", "report"} | PLUGINS,
    "train": TEACHING | {"config"},
    "evals": TEACHING,
}
SYSTEM = set(MAY_IMPORT) | DOOR
MAY_IMPORT |= {room: SYSTEM for room in DOOR}
MAY_IMPORT["mini"] = SYSTEM
MAY_IMPORT["cli"] = SYSTEM | {"mini"}
MAY_IMPORT["__main__"] = {"cli"}

PART = re.compile(r"`(\w+(?=/)|\w+\.py)/?`")
"""A folder or a module in the page's table."""

MODULES_OF_RL = 85
"""Most modules of the package, its 13 folders included, that the RL loop loads; fewer are better.
"""


def imported_modules(node: ast.AST) -> list[str]:
    """Full names of the modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module == "secondlook":
        return [f"secondlook.{alias.name}" for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []


def rooms_of(nodes) -> set[str]:
    """Rooms of the package that these statements import."""
    modules = [module for node in nodes for module in imported_modules(node)]
    return {module.split(".")[1] for module in modules if module.startswith("secondlook.")}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_stay_in_their_rooms(path):
    room = room_of(path)
    tree = ast.parse(path.read_text())
    beyond = rooms_of(ast.walk(tree)) - MAY_IMPORT[room] - EVERYONE - {room}
    assert not beyond, f"{path.name} imports {beyond}"
    if room != "mini":
        at_the_top = rooms_of(tree.body)
        assert "mini" not in at_the_top, f"{path.name} imports the miniature when it is imported"


def stated_imports() -> dict[str, set[str]]:
    """Of every module in the page's table, which others it may import. "X and what that
    may" is X with its own, "all above" the rows before, "everything" all rows."""
    table = PAGE.read_text().split("## Five words")[0]
    stated: dict[str, set[str]] = {}
    for row in re.findall(r"^\| (`.*) \|.*\| (.*) \|$", table, re.MULTILINE):
        own, others = ({part.removesuffix(".py") for part in PART.findall(cell)} for cell in row)
        for other in re.findall(r"`(\w+)/` and what that may", row[1]):
            others |= stated[other]
        if row[1] == "all above":
            others = set(stated)
        elif row[1].startswith("everything"):
            others = set(stated) | own
        for room in own:
            stated[room] = others - own
    return stated


def test_the_page_says_who_may_import_whom():
    stated = stated_imports()
    for room in MAY_IMPORT:
        allowed = MAY_IMPORT[room] - EVERYONE
        if room in DOOR:
            allowed -= DOOR
        if room in EVERYONE:
            allowed = set.union(*(MAY_IMPORT[other] for other in EVERYONE)) - EVERYONE
        assert room in stated, f"{room} is not in the page's table"
        assert stated[room] - EVERYONE - {room} == allowed - {room}, room


def loaded_by(module: str) -> list[str]:
    """Modules of the package that are loaded after ``module`` was imported in a new process."""
    script = f"import sys, {module}; print(*sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return [name for name in result.stdout.split() if name.split(".")[0] == "secondlook"]


def test_rl_loads_nothing_of_the_miniature():
    loaded = loaded_by("secondlook.train.rl.loop")
    assert not [name for name in loaded if name.startswith("secondlook.mini")]
    assert len(loaded) <= MODULES_OF_RL, f"{len(loaded)} modules: {' '.join(loaded)}"


@pytest.mark.parametrize("module", ["types", "errors", "registry", "plugin_settings"])
def test_the_roots_nouns_need_no_torch(module):
    script = f"import sys, secondlook.{module}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == ["False"]
