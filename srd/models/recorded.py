"""A teacher that is not loaded: a cache holds all that it would say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from srd.errors import UserError
from srd.models.outputs import Representation


@dataclass(frozen=True)
class RecordedTeacher:
    """What is known of it; beside `srd.models.teacher.LoadedTeacher`.

    Args:
        widths: D of what it says, by name.
        source: where the records are.
    """

    name: str
    source: str
    sha256: str | None
    widths: Mapping[str, int]
    knows_classes: bool = True
    class_names: list[str] | None = None  # compared when it was recorded
    notes: tuple[str, ...] = ()

    def width(self, reads: Representation, image_size: int) -> int:
        """D of its features or its tokens; a UserError where they were not recorded."""
        if reads not in self.widths:
            raise UserError(f"the loss reads {reads}, and {self.source} holds none")
        return self.widths[reads]
