"""What is installed: the project's version, its extras, and what packages registered with it."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

from srd.errors import UserError

PROJECT = "simple-recipe-distillation"


def version() -> str:
    """Of the project; a UserError where Python runs it without having it installed."""
    try:
        return metadata.version(PROJECT)
    except metadata.PackageNotFoundError:
        raise not_installed() from None


def registered(group: str) -> dict[str, metadata.EntryPoint]:
    """The entry points of `group`, by name.

    Raises:
        UserError: there are none, not even the project's own.
    """
    entries = {entry.name: entry for entry in metadata.entry_points(group=group)}
    if not entries:
        raise not_installed()
    return entries


def not_installed() -> UserError:
    """What to say where the project's files are there, and its registrations are not."""
    return UserError(f"{PROJECT} is not installed in this Python: pip install -e . in its folder")


def need_extra(extra: str | None, *packages: str, what: str) -> None:
    """Raise a UserError that says how to install what is missing unless all `packages` are there.

    Args:
        extra: of the project, which installs them; None: they are installed by their names.
        what: needs them, in the plural.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        mend = f"'{PROJECT}[{extra}]'" if extra else " ".join(missing)
        raise UserError(f"{what} need {', '.join(missing)}: pip install {mend}")
