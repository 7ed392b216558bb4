"""How a run starts: from its beginning, or where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from srd.config.layers import differences, dump_yaml
from srd.distributed import processes
from srd.errors import UserError
from srd.files.checkpoint import load_file, write_text
from srd.run.folder import RunFolder, launches

Upgrade = Callable[
    [Mapping[str, Any]], Mapping[str, Any]
]  # an earlier version's settings as today's


def load_resume(
    path: Path,
    recipe: Mapping[str, Any],
    *,
    not_recipe: tuple[str, ...],
    upgrade: Upgrade = lambda settings: settings,
) -> dict[str, Any]:
    """A checkpoint to go on from, checked to be of the same recipe.

    Args:
        recipe: the settings, and under `identity` what else must agree.

    Raises:
        UserError: the file is not a run's checkpoint, or its recipe differs (naming the fields).
    """
    state = load_file(path)
    saved = state.get("config")
    if not isinstance(saved, dict) or "position" not in state:
        raise UserError(f"{path} is not a checkpoint of a run here: it cannot be resumed")
    settings = {name: value for name, value in saved.items() if name != "identity"}
    identity = saved.get("identity") or {}
    saved = {**upgrade(settings), "identity": identity}
    known = {name: value for name, value in recipe["identity"].items() if name in identity}
    recipe = {**recipe, "identity": known}  # older checkpoints say less
    # The names of the classes are for those who use the student.
    changed = differences(saved, recipe, (*not_recipe, "identity.class_names"))
    if changed:
        raise UserError(
            f"{path} belongs to another recipe ({'; '.join(changed[:5])}): use another --name, "
            "the old values, or --resume none"
        )
    return state


class Opened(NamedTuple):
    """How a run starts: the state to go on from (None: from its start), and what to tell.

    Of a finished run also its result; then nothing in its folder has been touched.
    """

    state: dict[str, Any] | None
    notes: list[str]
    result: dict[str, Any] | None = None

    @property
    def updates(self) -> int:
        """Updates already made."""
        return self.state["position"]["updates"] if self.state else 0


def open_run(
    folder: RunFolder,
    resume: str,
    *,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    not_recipe: tuple[str, ...],
    upgrade: Upgrade = lambda settings: settings,
    config_text: str | None = None,
) -> Opened:
    """Make a run's folder ready, and find where the run goes on.

    Args:
        resume: `auto` (the newest whole checkpoint in the folder), `none` (a new run; an earlier
            one's folder is renamed), or a checkpoint file. A command that torchrun or SLURM starts
            again goes on where it was, whatever this says.
        settings: the resolved configuration, saved with the run.
        identity: what a checkpoint must agree on besides.
        not_recipe: settings that may differ from the checkpoint's.
        upgrade: makes today's settings of an earlier version's.
        config_text: what `config.yaml` shall hold instead of `settings`.

    Raises:
        UserError: the folder cannot be written or another process writes it, a process cannot see
            it, or the checkpoint belongs to another recipe.
    """
    processes.from_main(folder.claim)
    try:
        start, damaged = processes.from_main(lambda: _starting_point(folder, resume))
        path = start if isinstance(start, Path) else None
        if path is not None and (blind := processes.ranks_where(not path.is_file())):
            raise UserError(
                f"process {blind[0]} does not see {path}: --output must be a folder that all "
                "machines share"
            )
        recipe = {**settings, "identity": identity}
        state = None
        if path is not None:
            state = load_resume(path, recipe, not_recipe=not_recipe, upgrade=upgrade)
        if state is not None and (result := processes.from_main(folder.read_result)) is not None:
            return Opened(state, [], result)
        text = config_text or dump_yaml(settings)
        notes = processes.from_main(lambda: _make_ready(folder, text, start, damaged))
    except UserError:
        folder.release()
        raise
    return Opened(state, notes)


def _make_ready(
    folder: RunFolder, config_text: str, start: Path | str, damaged: list[Path]
) -> list[str]:
    """Everything in its place for the run to start; returns what to tell."""
    notes: list[str] = []
    if start == "anew" and (aside := folder.set_aside()):
        notes.append(f"the earlier run is now {aside}")
    folder.prepare()
    folder.claim()
    write_text(folder.config, config_text)
    if launches():
        write_text(folder.launch, "\n".join(launches()) + "\n")
    for file in damaged:
        file.rename(file.with_name(f"{file.name}.damaged"))
        notes.append(f"{file} is damaged: passed over for {start}, and kept as {file.name}.damaged")
    return notes


def _starting_point(folder: RunFolder, resume: str) -> tuple[Path | str, list[Path]]:
    """The checkpoint to go on from, `"start"`, or `"anew"`; and the damaged files passed over."""
    again = folder.was_started_by_this_launch()
    if resume == "none" and not again:
        return "anew", []
    path, damaged = folder.find_resume() if resume in ("auto", "none") or again else (None, [])
    if path is None and resume not in ("auto", "none"):
        path = Path(resume).expanduser()
        if not path.is_file():
            raise UserError(f"no checkpoint at {path}")
    if path is None and damaged:
        raise UserError(
            f"{damaged[0]} is damaged and there is no other checkpoint: --resume none starts anew"
        )
    return path or "start", damaged
