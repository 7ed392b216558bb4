"""How a run starts: from its beginning, or where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from srd.config.layers import differences
from srd.errors import UserError
from srd.files.checkpoint import load_file
from srd.run.extension import Pace, check_extended, extend
from srd.run.folder import RunFolder
from srd.run.state import Misfit, check_outline

Upgrade = Callable[
    [Mapping[str, Any]], Mapping[str, Any]
]  # an earlier version's settings as today's


def load_resume(
    path: Path,
    recipe: Mapping[str, Any],
    *,
    not_recipe: tuple[str, ...],
    upgrade: Upgrade = lambda settings: settings,
    pace: Pace | None = None,
) -> dict[str, Any]:
    """A checkpoint to go on from, checked to be of the same recipe.

    Args:
        recipe: the settings, and under `identity` what else must agree.
        pace: how long the run is now, where it may go on under other settings.

    Raises:
        UserError: its recipe differs (naming the fields), or, where it may, in what no run can
            change. Misfit: no run could go on from it.
    """
    state = load_file(path)
    changed = changes(state, recipe, not_recipe, upgrade)
    if changed and pace is None:
        raise UserError(
            f"{path} belongs to another recipe ({'; '.join(changed[:5])}): --extend goes on under the "
            "new values; or use another --name, the old values, or --resume none"
        )
    if changed and pace is not None:
        check_extended(state.get("extended", []))
        extend(state, changed, pace)
    return state


def changes(
    state: Mapping[str, Any],
    recipe: Mapping[str, Any],
    not_recipe: tuple[str, ...],
    upgrade: Upgrade,
) -> list[str]:
    """What differs between a checkpoint's recipe and today's, `key: old -> new`.

    Raises:
        Misfit: it is no checkpoint of a run.
    """
    check_outline(state)
    saved = state["config"]
    settings = {name: value for name, value in saved.items() if name != "identity"}
    identity = saved.get("identity") or {}
    if not isinstance(identity, dict):
        raise Misfit("config.identity is no mapping")
    saved = {**upgrade(settings), "identity": identity}
    known = {name: value for name, value in recipe["identity"].items() if name in identity}
    recipe = {**recipe, "identity": known}  # older checkpoints say less
    # The names of the classes are for those who use the student.
    return differences(saved, recipe, (*not_recipe, "identity.class_names"))


SLIM = "recipe"  # of the result of a run whose checkpoints were removed: what they said of it


class Start(NamedTuple):
    """Where a run starts.

    Args:
        path: of the checkpoint to go on from; None: from the run's start.
        anew: an earlier run's folder is to be renamed first.
        chosen: somebody named this checkpoint, and no other may stand in for it.
        passed: the checkpoints passed over, and what is wrong with them.
    """

    path: Path | None = None
    anew: bool = False
    chosen: bool = False
    passed: dict[Path, str] = {}  # noqa: RUF012 (never changed)


class Opened(NamedTuple):
    """How a run starts: the state to go on from (None: from its start), and what to tell.

    Of a finished run also its result; then nothing in its folder has been touched.

    Args:
        changed: the settings under which the run is extended, `key: old -> new`.
    """

    state: dict[str, Any] | None
    notes: list[str]
    result: dict[str, Any] | None = None
    start: Start = Start()
    search: Resume | None = None  # finds another checkpoint
    changed: tuple[str, ...] = ()

    @property
    def updates(self) -> int:
        """Updates already made."""
        return self.state["position"]["updates"] if self.state else 0


class Resume:
    """Finds where a run goes on, and what to go on from where that does not fit.

    Args:
        resume: `auto` (the newest whole checkpoint in the folder), `none` (a new run; an earlier
            one's folder is renamed), or a checkpoint file. A command that torchrun or SLURM starts
            again goes on where it was, whatever this says.
        recipe: the settings, and under `identity` what else must agree.
        not_recipe: settings that may differ from the checkpoint's.
        upgrade: makes today's settings of an earlier version's.
        pace: see `load_resume`.
    """

    def __init__(
        self,
        folder: RunFolder,
        resume: str,
        recipe: Mapping[str, Any],
        not_recipe: tuple[str, ...],
        upgrade: Upgrade,
        pace: Pace | None = None,
    ) -> None:
        self.folder, self.recipe, self.not_recipe = folder, recipe, not_recipe
        self.upgrade, self.pace = upgrade, pace
        self.again = folder.was_started_by_this_launch()
        self.resume = resume

    def load(self, path: Path) -> dict[str, Any]:
        """See `load_resume`."""
        return load_resume(
            path, self.recipe, not_recipe=self.not_recipe, upgrade=self.upgrade, pace=self.pace
        )

    def changed(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """What differs from a checkpoint that may be extended."""
        return tuple(changes(state, self.recipe, self.not_recipe, self.upgrade))

    def first(self) -> Start:
        """Where the run starts.

        Raises:
            UserError: a checkpoint that was named is none, there are only damaged ones, or the
                newest belongs to another recipe.
        """
        if self.resume == "none" and self.pace is not None:
            raise UserError("--extend goes on with a run, --resume none starts anew: leave one out")
        if self.resume == "none" and not self.again:
            return Start(anew=True)
        named = None if self.resume in ("auto", "none") else Path(self.resume).expanduser()
        start = self.next({}) if self.again or named is None else Start()
        if start.path is not None:
            return start
        if named is None:
            self.check_absent(start)
            return start
        if not os.path.isfile(named):  # unlike pathlib's, this never raises
            raise UserError(f"no checkpoint at {named}")
        try:
            self.load(named)
        except Misfit as misfit:
            raise cannot_resume(named, misfit) from None
        return Start(named, chosen=True, passed=start.passed)

    def slim_result(self) -> dict[str, Any] | None:
        """The result of the finished run in the folder, where its checkpoints were removed."""
        result = self.folder.finished() or {}
        return result if isinstance(result.get(SLIM), dict) else None

    def check_absent(self, start: Start) -> None:
        """Raise a UserError where no checkpoint is there to go on from, and one would have to be."""
        only(start)
        if (result := self.slim_result()) is not None:
            outline = {"config": result[SLIM], "position": {"epoch": 0, "step": 0, "updates": 0}}
            try:
                changed = changes(outline, self.recipe, self.not_recipe, self.upgrade)
            except Misfit as misfit:
                raise UserError(f"{self.folder.result} is damaged ({misfit})") from None
            if changed:
                raise UserError(
                    f"{self.folder.path} is slim: without checkpoints it cannot go on under other "
                    f"settings ({'; '.join(changed[:5])}); use another --name, and --init "
                    f"{self.folder.path} to start from its weights"
                )
        elif self.pace is not None:
            raise UserError(
                f"--extend: there is no run in {self.folder.path} to go on with (see --output and "
                "--name); leave it out to start one"
            )

    def next(self, unfit: Mapping[Path, str]) -> Start:
        """From the newest checkpoint in the folder, besides `unfit`, that is a run's."""
        passed = dict(unfit)
        while True:
            path, damaged = self.folder.find_resume(passed)
            passed |= dict.fromkeys(damaged, "damaged")
            if path is None:
                return Start(passed=passed)
            try:
                self.load(path)
            except Misfit as misfit:
                passed[path] = str(misfit)
            else:
                return Start(path, passed=passed)


def only(start: Start) -> Start:
    """The start; a UserError where there were checkpoints, and none was whole."""
    for file, reason in start.passed.items() if start.path is None else ():
        why = "" if reason == "damaged" else f" ({reason})"
        raise UserError(
            f"{file} is damaged{why} and there is no other checkpoint: --resume none starts anew"
        )
    return start


def cannot_resume(path: Path, misfit: Misfit) -> UserError:
    """A checkpoint that was named, and that the run cannot go on from."""
    return UserError(f"{path} cannot be resumed: {misfit}")
