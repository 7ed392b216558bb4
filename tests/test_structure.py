"""The arrows between the packages, and rooms that stay rooms."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "srd": {"deit", "resnet", "tests"},
    "deit": {"resnet", "tests"},
    "resnet": {"deit", "tests"},
}
SOURCES = [path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Top-level names of every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert not imports(path) & FORBIDDEN[package]
    if package == "srd" and path.name != "cli.py":
        assert "argparse" not in imports(path)


def test_no_module_hides_one_of_the_standard_library() -> None:
    assert not {path.stem for path in SOURCES} & (sys.stdlib_module_names - {"__init__"})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 330
    assert ast.get_docstring(ast.parse(path.read_text())), "a file says what it is for"


def test_weights_are_read_in_one_place_only() -> None:
    for path in SOURCES:
        if path.name != "weights.py":
            text = path.read_text()
            assert "torch.load(" not in text and "pickle.load" not in text, path
