"""What `docs/reliability.md` points at is there: a row whose test is gone promises nothing."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
# A test, or all of a file.
_REFERENCE = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`")
_SHOWN_BY = re.compile(_REFERENCE.pattern + r"|`make [\w-]+`")
_ROW = re.compile(r"^\|(?P<cells>.+)\|$", re.MULTILINE)


def test_every_test_that_a_row_names_exists() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    references = set(_REFERENCE.findall(page))
    assert references
    missing = [f"{path}::{name}" for path, name in references if not is_there(path, name)]
    assert missing == []
    named = re.findall(r"`[^`\s]*(?:::|\.py)[^`\s]*`", page)
    assert [name for name in named if not _REFERENCE.fullmatch(name)] == []


def test_every_make_target_that_is_named_exists() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)`", page)) <= targets


def test_every_fault_has_an_outcome_and_a_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    faults = page[page.index("## Faults") : page.index("## From a bug to a command")]
    rows = [row["cells"] for row in _ROW.finditer(faults)]
    told = [row for row in rows if not row.startswith((" fault |", " --- |"))]
    assert told
    assert [row for row in told if row.count(" | ") != 2 or not _SHOWN_BY.search(row)] == []


def is_there(path: str, name: str) -> bool:
    file = TESTS / path
    if not name or not file.exists():
        return file.exists()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(file.read_text()))
    return any(isinstance(node, functions) and node.name == name for node in nodes)
