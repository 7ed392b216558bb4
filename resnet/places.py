"""Where a configuration may make a run write, and what it may replace there."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

from resnet.trust import TRUST
from srd.errors import UserError

SUFFIXES = (".pt", ".pth", ".ckpt")


class Places(NamedTuple):
    """The folders that a file may write in: the working folder, `--output`, and its data's."""

    output: str = "runs"
    data: str | None = None

    def hold(self, path: str, *, data: bool = False) -> bool:
        """Whether `path` lies in one of them, links followed; `data`: in --data-path, too."""
        folders = [".", self.output, *([self.data] if data and self.data else [])]
        try:
            place = Path(path).expanduser().resolve()
            return any(place.is_relative_to(Path(f).expanduser().resolve()) for f in folders)
        except (
            OSError,
            RuntimeError,
            ValueError,
        ):  # a circle of links, no such user, no name at all
            return False

    def check(self, path: object, name: str, where: str) -> None:
        """Raise a UserError unless a run may write its checkpoint to `path`."""
        if path is None:
            return
        if not isinstance(path, str) or Path(path).suffix not in SUFFIXES:
            raise UserError(
                f"{where}: {name} must be the name of a file that ends in {', '.join(SUFFIXES)}"
            )
        if ".." in Path(path).parts or not self.hold(path):
            raise UserError(
                f"{where}: {name} would write to {path[:200]!r}: a file may write under the working "
                f"folder and --output only; {TRUST}"
            )
        place = Path(path).expanduser()
        if place.is_symlink() or (place.exists() and not _is_checkpoint(place)):
            raise UserError(
                f"{where}: {name} would replace {path[:200]!r}, which is no checkpoint; name another "
                f"file, or {TRUST}"
            )


def names_a_file(text: str) -> bool:
    """Whether a text can be the name of a file, there or not."""
    try:
        Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a null character
        return False
    return "\0" not in text


def _is_checkpoint(path: Path) -> bool:
    """Whether torch wrote this file, today's way; what is in it does not matter."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()[:2000]}
    return {"data.pkl", "version"} <= names
