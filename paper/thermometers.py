"""How the package's code reads beside other codebases of the field, as numbers.

    python paper/thermometers.py src/secondlook
    python paper/thermometers.py src/secondlook ../nanochat/nanochat ../trl/trl --json out/code.json

Of every folder of Python files:

- comprehensions (list, set, dict, generator) a thousand lines of code,
- comment lines a hundred lines of code,
- the share of assigned names (variables, arguments, attributes of self) that are one bare word,
- the share of public functions and classes whose name is defined in several modules,
- the size of the README beside the folder or above it.

Lines of code are those that are neither blank, comment nor docstring. They are thermometers: a
better reading by worse code is a step back.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Reading:
    """What is measured of one codebase."""

    name: str
    lines_of_code: int
    comprehensions_per_1000: float
    comments_per_100: float
    one_word_names: float
    names_in_several_modules: float
    readme_kb: float


def python_files(folder: Path) -> list[Path]:
    """Source files, tests left out."""
    files = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        is_left_out = any(part.startswith(("test", ".")) for part in parts)
        if not is_left_out:
            files.append(path)
    return files


def docstring_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines that docstrings (also those under fields) take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        if isinstance(node.value.value, str):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def count_lines(source: str, tree: ast.AST) -> tuple[int, int]:
    """Lines of code, and lines that carry a comment."""
    code: set[int] = set()
    comments: set[int] = set()
    ignored = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in ignored:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstring_lines(tree)), len(comments)


def assigned_names(tree: ast.AST) -> Iterator[str]:
    """Names that an assignment, a loop, a ``with``, an argument or ``self.name = …`` binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg) and node.arg not in ("self", "cls"):
            yield node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def is_one_word(name: str) -> bool:
    """A bare word: no second part after an underscore or a capital letter."""
    bare = name.strip("_")
    return "_" not in bare and (bare.islower() or bare.isupper())


def public_names(tree: ast.Module) -> set[str]:
    """Public functions and classes at a module's top."""
    names = set()
    for node in tree.body:
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if named and not node.name.startswith("_"):
            names.add(node.name)
    return names


def readme_size(folder: Path) -> float:
    """KB of the nearest README.md, at most three folders up; 0 where there is none."""
    for parent in (folder, *list(folder.resolve().parents)[:3]):
        if (parent / "README.md").is_file():
            return (parent / "README.md").stat().st_size / 1000
    return 0.0


def measure(folder: Path) -> Reading:
    """Read all of a codebase's files. Raises FileNotFoundError where it has none."""
    files = python_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} holds no Python file")
    num_lines = num_comments = num_comprehensions = num_one_word = num_assigned = 0
    modules_of_name: dict[str, int] = defaultdict(int)
    for path in files:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        code_lines, comment_lines = count_lines(source, tree)
        num_lines += code_lines
        num_comments += comment_lines
        num_comprehensions += sum(isinstance(node, COMPREHENSIONS) for node in ast.walk(tree))
        for name in assigned_names(tree):
            num_assigned += 1
            num_one_word += is_one_word(name)
        for name in public_names(tree):
            modules_of_name[name] += 1
    num_in_several = sum(count > 1 for count in modules_of_name.values())
    return Reading(
        name=folder.resolve().name,
        lines_of_code=num_lines,
        comprehensions_per_1000=1000 * num_comprehensions / num_lines,
        comments_per_100=100 * num_comments / num_lines,
        one_word_names=num_one_word / max(1, num_assigned),
        names_in_several_modules=num_in_several / max(1, len(modules_of_name)),
        readme_kb=readme_size(folder),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    readings = [measure(folder) for folder in args.folders]
    print(f"{'':20} lines  comprehensions/1000  comments/100  one word  in several  README KB")
    for reading in readings:
        print(
            f"{reading.name:20} {reading.lines_of_code:5}  "
            f"{reading.comprehensions_per_1000:19.1f}  "
            f"{reading.comments_per_100:12.1f}  {reading.one_word_names:8.0%}  "
            f"{reading.names_in_several_modules:10.0%}  {reading.readme_kb:9.1f}"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(reading) for reading in readings], indent=1))


if __name__ == "__main__":
    main()
