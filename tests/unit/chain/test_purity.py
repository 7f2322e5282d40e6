"""The chain is pure: what it hashes may depend on nothing but its arguments."""

import ast
from pathlib import Path

import pytest

import app.chain

PURE = [
    "hashing", "merkle", "sparse", "header", "authority", "pipeline", "signer", "position",
    "verify",
]  # fmt: skip
ALLOWED = {
    "app", "coincurve", "collections", "itertools", "msgspec", "struct", "tiny_keccak", "typing",
}  # fmt: skip
ALLOWED_OF_APP = {"app.chain", "app.errors", "app.model"}


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_imports_nothing_that_reaches_outside(name: str) -> None:
    source = Path(app.chain.__path__[0], f"{name}.py").read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            assert module.split(".")[0] in ALLOWED, f"{name} imports {module}"
            if module.startswith("app."):
                assert ".".join(module.split(".")[:2]) in ALLOWED_OF_APP
