"""The arrows between packages and rooms, no circle among modules, and rooms that stay rooms."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"srd": set(), "deit": {"srd"}, "resnet": {"srd"}}
# room of srd: the rooms that it may import; top-level modules are rooms of one file
ROOMS = {
    "strict": set(),
    "printable": set(),
    "streams": set(),
    "errors": {"printable", "streams"},
    "cli": {"errors"},
    "compiled": {"errors"},
    "device": {"errors"},
    "distributed": {"errors"},
    "installed": {"errors"},
    "libraries": set(),
    "method": {"strict", "errors", "distributed"},
    "config": {"strict", "errors", "method"},
    "files": {"errors", "printable"},
    "data": {
        "config", "device", "distributed", "errors", "files", "installed", "printable", "strict",
    },
    "models": {"config", "device", "distributed", "errors", "files", "installed"},
    "run": {"config", "distributed", "errors", "files", "installed", "printable", "strict"},
    "evaluation": {
        "compiled", "config", "data", "device", "distributed", "errors", "files", "method", "models",
        "run",
    },
    "report": {"config", "errors", "files", "printable", "run", "strict"},
    "export": {"config", "data", "errors", "files", "installed", "models", "printable", "run"},
    "cache": {"config", "data", "distributed", "errors", "files", "run", "strict"},
    "training": {
        "cache", "compiled", "config", "data", "device", "distributed", "errors", "evaluation", "files",
        "method", "models", "run", "streams",
    },
    "bench": {
        "cache", "config", "data", "device", "distributed", "evaluation", "files", "method", "models",
        "run", "training",
    },
    "study": {
        "config", "errors", "evaluation", "files", "method", "models", "printable", "run", "strict",
        "training",
    },
    "commands": {
        "bench", "cache", "cli", "config", "data", "device", "errors", "export", "files",
        "installed", "libraries", "printable", "report", "run", "study", "training",
    },
    "__init__": {"errors", "files", "installed", "method", "models", "training"},
    "__main__": {"commands"},
}  # fmt: skip
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as far as it is known by its name."""
    modules = {module_name(source) for source in SOURCES}
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            inside = {f"{node.module}.{name.name}" for name in node.names}
            names |= (inside & modules) or {node.module}
    return names


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package, found = path.relative_to(ROOT).parts[0], imports(path)
    ours = {name for name in found if name.split(".")[0] in {*PACKAGES, "tests", "scripts"}}
    assert {name.split(".")[0] for name in ours} <= PACKAGES[package] | {package}
    if package == "srd":
        here = room(module_name(path))
        assert {room(name) for name in ours} <= ROOMS[here] | {here}
        assert "argparse" not in found or here in ("cli", "commands")


def test_every_room_has_its_arrows() -> None:
    assert {room(module_name(path)) for path in SOURCES if path.parts[-2:-1] != ("srd",)} | {
        path.stem for path in (ROOT / "srd").glob("*.py")
    } >= set(ROOMS)


def test_rooms_and_modules_form_no_circle() -> None:
    modules = {module_name(path): imports(path) for path in SOURCES}
    try:
        order = list(TopologicalSorter(modules).static_order())
        list(TopologicalSorter(ROOMS).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {error.args[1]}")
    assert set(modules) <= set(order)


def test_no_module_hides_one_of_the_standard_library() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in SOURCES}
    names |= {
        path.stem for path in (ROOT / "deit").glob("*.py")
    }  # `python deit/main.py` finds them
    names |= {path.stem for path in (ROOT / "resnet").glob("*.py")}
    assert not names & (sys.stdlib_module_names - {"__init__"})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 330
    assert ast.get_docstring(ast.parse(path.read_text())), "a file says what it is for"


def test_nothing_is_unpickled_anywhere() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert "torch.load(" not in text and "pickle.load" not in text, path
