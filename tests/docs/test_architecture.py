"""docs/architecture.md is the code's: the picture of the rooms, and one batch's way."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from deit import main
from srd.method.simple_recipe import SimpleRecipeLoss
from tests.docs.pages import ROOT, blocks
from tests.test_structure import ROOMS

PAGE = ROOT / "docs" / "architecture.md"
OUTSIDE = {  # files, not rooms
    "__init__", "__main__", "cli", "errors", "installed", "libraries", "printable", "streams",
    "strict",
}  # fmt: skip
ARROWS = {room: rooms - OUTSIDE for room, rooms in ROOMS.items() if room not in OUTSIDE}


def reached(room: str) -> set[str]:
    return {further for next in ARROWS[room] for further in {next} | reached(next)}


def test_the_picture_shows_the_arrows_that_do_not_follow_from_others() -> None:
    (picture,) = blocks(PAGE, "mermaid")
    drawn = set(re.findall(r"^  (\w+) --> (\w+)$", picture.text, re.M))
    bare = {
        (room, other)
        for room, rooms in ARROWS.items()
        for other in rooms
        if not any(other in reached(between) for between in rooms - {other})
    }
    assert drawn == bare
    for room in ARROWS:
        listed = f"| `srd/{room}/` |" in PAGE.read_text()
        assert listed == (ROOT / "srd" / room).is_dir()


def way() -> list[tuple[str, str]]:
    """(function, file) of every frame of this project from here up, the command first."""
    frames: list[tuple[str, str]] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("srd", "deit"):
            frames.append((frame.f_code.co_name, str(path.relative_to(ROOT))))
        frame = frame.f_back
    return frames[::-1]


@pytest.mark.usefixtures("narrow")
def test_one_batchs_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: Path) -> None:
    seen: list[list[tuple[str, str]]] = []
    forward = SimpleRecipeLoss.forward

    def looked_at(self: SimpleRecipeLoss, z_s: Any, z_t: Any) -> Any:
        seen.append([*way(), (forward.__name__, str(Path(forward.__code__.co_filename)))])
        return forward(self, z_s, z_t)

    monkeypatch.setattr(SimpleRecipeLoss, "forward", looked_at)
    arguments = ["--train_student", f"--config={recipe}", f"--output={tmp_path}", "--epochs=1"]
    monkeypatch.setattr(sys, "argv", ["deit/main.py", *arguments, "--device=cpu"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    rows = re.findall(r"^\| \d \| `(\w+)` \| `([\w/.]+)` \|", PAGE.read_text(), re.M)
    told = [(name, file) for name, file in seen[0] if name not in ("<lambda>", "exit_code")]
    told[-1] = (told[-1][0], str(Path(told[-1][1]).relative_to(ROOT)))
    assert told == rows and all(frames == seen[0] for frames in seen)
    assert len(rows) <= 8 and len({file for _, file in rows}) <= 5
