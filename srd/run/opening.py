"""A run's folder made ready, and the checkpoint that it goes on from, on every process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from srd.config.layers import dump_yaml
from srd.distributed import processes
from srd.errors import UserError
from srd.files.checkpoint import write_text
from srd.run.extension import Pace
from srd.run.folder import RunFolder, launches
from srd.run.resume import Opened, Resume, Start, Upgrade, cannot_resume, only
from srd.run.state import Misfit


def open_run(
    folder: RunFolder,
    resume: str,
    *,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    not_recipe: tuple[str, ...],
    upgrade: Upgrade = lambda settings: settings,
    config_text: str | None = None,
    pace: Pace | None = None,
) -> Opened:
    """Make a run's folder ready, and find where the run goes on.

    Args:
        resume, not_recipe, upgrade: see `Resume`.
        settings: the resolved configuration, saved with the run.
        identity: what a checkpoint must agree on besides.
        config_text: what `config.yaml` shall hold instead of `settings`.
        pace: see `load_resume`. `config.yaml` of a run that is extended stays as it is.

    Raises:
        UserError: the folder cannot be written or another process writes it, a process cannot see
            it, or the checkpoint belongs to another recipe.
    """
    processes.from_main(folder.claim)
    search = Resume(folder, resume, {**settings, "identity": identity}, not_recipe, upgrade, pace)
    try:
        start = processes.from_main(search.first)
        if start.path is None and not start.anew:
            slim = processes.from_main(search.slim_result)
            if slim is not None:
                return Opened(None, [], slim)
        state = everywhere(start.path, search.load)
        changed = search.changed(state) if state is not None else ()
        finished = None if state is None or changed else processes.from_main(folder.finished)
        if finished is not None:
            return Opened(state, [], finished)
        text = None if changed else config_text or dump_yaml(settings)
        notes = processes.from_main(lambda: _make_ready(folder, text, start))
    except UserError:
        folder.release()
        raise
    return Opened(state, notes, None, start, search, changed)


def everywhere(path: Path | None, load: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
    """The checkpoint's state, on every process; a UserError where one does not see the file."""
    if path is None:
        return None
    if blind := processes.ranks_where(not path.is_file()):
        raise UserError(
            f"process {blind[0]} does not see {path}: --output must be a folder that all "
            "machines share"
        )
    return load(path)


def _make_ready(folder: RunFolder, config_text: str | None, start: Start) -> list[str]:
    """Everything in its place for the run to start; returns what to tell."""
    notes: list[str] = []
    if start.anew and (aside := folder.set_aside()):
        notes.append(f"the earlier run is now {aside}")
    if start.path is None or start.chosen:
        folder.check_ours(to_rename=False)
    folder.prepare()
    folder.claim()
    if config_text is not None:
        write_text(folder.config, config_text)
    if launches():
        write_text(folder.launch, "\n".join(launches()) + "\n")
    return notes + keep_aside(start)


def instead(opened: Opened, misfit: Misfit) -> Opened:
    """Where a run goes on whose state does not fit: from the checkpoint before.

    Raises:
        UserError: there is none; or the state's checkpoint was named, and nothing stands in for it.
    """
    path, search = opened.start.path, opened.search
    assert path is not None and search is not None
    if opened.start.chosen:
        raise cannot_resume(path, misfit)
    start = processes.from_main(lambda: search.next({path: str(misfit)}))
    state = everywhere(start.path if start.path else only(start).path, search.load)
    changed = search.changed(state) if state is not None else ()
    notes = processes.from_main(lambda: keep_aside(start))
    return Opened(state, notes, None, start, search, changed)


def keep_aside(start: Start) -> list[str]:
    """Rename the checkpoints that were passed over; returns what to tell."""
    notes = []
    for file, reason in start.passed.items():
        why = "" if reason == "damaged" else f" ({reason})"
        file.rename(file.with_name(f"{file.name}.damaged"))
        notes.append(
            f"{file} is damaged{why}: passed over for {start.path or 'start'}, and kept as "
            f"{file.name}.damaged"
        )
    return notes
