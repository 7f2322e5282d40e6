"""The house holds: what is pure stays pure, imports run downwards, and files stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
APP: Final = ROOT / "app"

# A module imports from its own room and from rooms on lower floors, from nowhere else.
FLOORS: Final = {
    "compiling": 0,
    "environment": 0,
    "errors": 0,
    "failpoints": 0,
    "logs": 0,
    "tasks": 0,
    "model": 1,
    "chain": 2,
    "settings": 3,
    "wal": 4,
    "embedded": 4,
    "client": 4,
    "feed": 4,
    "store": 5,
    "replay": 5,
    "replication": 5,
    "secret_file": 5,
    "keystore": 6,
    "tokens": 6,
    "access": 7,
    "metrics": 6,
    "verify": 6,
    "keys": 7,
    "service": 8,
    "rebuild": 9,
    "adopt": 10,
    "repair": 9,
    "api": 9,
    "main": 10,
    "server": 11,
    "cli": 12,
}
# The commitment store stands in the chain's room, on a floor of its own: it reaches the disk.
STORE: Final = {f"app.chain.{name}" for name in ("rocks", "store", "store_format", "store_reading")}
# What reaches outside: an event loop, the system, the network, or the framework.
OUTSIDE: Final = {
    "asyncio",
    "asyncpg",
    "concurrent",
    "fastapi",
    "granian",
    "httpx",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "sqlalchemy",
    "starlette",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
}
CODE: Final = {".py", ".sh", ".sql", ".js", ".css", ".html"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: Final = {module_name(path): path for path in APP.rglob("*.py")}


def imports(module: str) -> Iterator[str]:
    """The modules that a module imports anywhere in its text; names from packages are resolved."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def reached(module: str) -> dict[str, str]:
    """Every module that importing `module` runs within the app, and by whom it is imported."""
    found = {module: ""}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        packages = [
            ".".join(current.split(".")[:depth]) for depth in range(1, current.count(".") + 1)
        ]
        for name in [*imports(current), *packages]:
            if name in MODULES and name not in found:
                found[name] = current
                waiting.append(name)
    return found


def pure_modules() -> list[str]:
    pure = (module for module in MODULES if room(module) in {"model", "chain"})
    return sorted(["app.wal.record", *pure])


def room(module: str) -> str:
    if module in STORE:
        return "store"
    return module.split(".")[1] if "." in module else "app"


@pytest.mark.parametrize("module", pure_modules())
def test_a_pure_module_reaches_nothing_outside_not_even_through_another(module: str) -> None:
    for name, importer in reached(module).items():
        outside = {each.split(".")[0] for each in imports(name)} & OUTSIDE
        assert not outside, f"{module} → … {importer} → {name} imports {sorted(outside)}"


def test_the_rooms_that_should_be_pure_are_there() -> None:
    assert {"app.model.entry", "app.model.codec", "app.model.rules", "app.wal.record"} < set(
        pure_modules()
    )


@pytest.mark.parametrize("module", sorted(name for name in MODULES if "." in name))
def test_imports_run_downwards(module: str) -> None:
    assert room(module) in FLOORS, f"{module}: give its room a floor"
    floor = FLOORS[room(module)]
    for name in imports(module):
        if not name.startswith("app."):
            continue
        other = room(name)
        assert other == room(module) or FLOORS[other] < floor, f"{module} imports {name}"


def test_no_module_imports_itself_around_a_corner() -> None:
    def importers(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path, module])
        for name in imports(module):
            if name in MODULES and name not in cleared:
                importers(name, (*path, module))
        cleared.add(module)

    cleared: set[str] = set()
    for module in MODULES:
        importers(module, ())


@pytest.mark.parametrize("directory", ["app", "alembic", "bench", "deploy", "examples", "tests"])
def test_no_file_is_longer_than_500_lines(directory: str) -> None:
    files = (path for path in (ROOT / directory).rglob("*") if path.suffix in CODE)
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in files}
    too_long = {str(path.relative_to(ROOT)): size for path, size in lengths.items() if size > 500}
    assert not too_long


def test_only_one_module_of_the_log_makes_file_system_calls() -> None:
    """The seam through which tests put faults must be the only way to the disk."""
    calls = {"open", "pwrite", "write", "fsync", "fdatasync", "rename", "replace", "unlink"}
    calls |= {"ftruncate", "truncate", "mkdir", "posix_fallocate"}
    for module, path in MODULES.items():
        if not module.startswith("app.wal.") or module == "app.wal.files":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                direct = isinstance(owner, ast.Name) and owner.id == "os"
                assert not (direct and node.func.attr in calls), f"{module}:{node.lineno}"
