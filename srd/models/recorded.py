"""A teacher that is not loaded: a cache holds all that it would say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from srd.errors import UserError
from srd.models.outputs import Representation, dim


@dataclass(frozen=True)
class RecordedTeacher:
    """What is known of it; beside `srd.models.teacher.LoadedTeacher`.

    Args:
        shapes: of what it says of an image, by name.
        source: where the records are.
    """

    name: str
    source: str
    sha256: str | None
    shapes: Mapping[str, tuple[int, ...]]
    knows_classes: bool = True
    class_names: list[str] | None = None  # compared when it was recorded
    notes: tuple[str, ...] = ()

    def width(self, reads: Representation, image_size: int, positions: int = 1) -> int:
        """D of what it says; a UserError where that was not recorded, or is a map of fewer positions."""
        if reads not in self.shapes:
            raise UserError(f"the loss reads {reads}, and {self.source} holds none")
        what = f"the teacher's map in {self.source}"
        return dim(self.shapes[reads], reads, positions=positions, what=what)
