"""Who may import whom (docs/architecture.md). A room may always import itself, types and files."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "secondlook"
EVERYONE = {"types", "files"}
MAY_IMPORT = {
    "types": set(),
    "files": set(),
    "world": set(),
    "model": set(),
    "engine": {"model"},
    "rewards": {"world", "engine", "model"},  # a checkpoint as judge
    "introspect": {
        "engine",
        "model",
    },  # for type checking only: the engine is passed in; lengths of sequences
    "report": set(),
    "config": set(),
    "evaluate": {"rewards", "data", "engine"},  # the last two for type checking only
    "data": {"engine", "introspect", "rewards", "model", "world", "report"},
    "train": {"model", "engine", "introspect", "rewards", "data", "report"},
    "bench": {"engine", "introspect", "rewards", "model", "world", "data", "report"},
    "cli": {
        "types",
        "files",
        "world",
        "model",
        "engine",
        "introspect",
        "report",
        "config",
        "evaluate",
        "rewards",
        "data",
        "train",
        "bench",
    },
}


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{a.name}" for a in node.names]
                if node.module == "secondlook"
                else [node.module]
            )
        found |= {n.split(".")[1] for n in names if n.startswith("secondlook.")}
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_imports_stay_in_their_rooms(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    beyond = imports(path) - MAY_IMPORT[room] - EVERYONE - {room}
    assert not beyond, f"{path.name} imports {beyond}"


def test_types_do_not_need_torch():
    text = (SOURCE / "types.py").read_text()
    assert "torch" not in {
        line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))
    }
