"""A run's folder: where its files are, how it goes on after a stop, and what it leaves at the end."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from srd.config.layers import differences, dump_yaml
from srd.distributed import processes as dist
from srd.errors import RunFailed, UserError
from srd.files.checkpoint import load_file, newest_whole, save_state, write_text
from srd.run.lock import Claim


class RunFolder:
    """`<output>/<name>/` and the files in it."""

    def __init__(self, output: str | Path, name: str) -> None:
        self.path = Path(output).expanduser() / name
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.pth"
        self.best = self.checkpoints / "best.pth"
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.student = self.path / "student.safetensors"
        self.result = self.path / "result.json"
        self.launch = self.path / ".launch"
        self._claim: Claim | None = None

    def claim(self) -> None:
        """Keep other processes out, if the folder is there, until `release` or this one's end.

        Raises:
            UserError: another process is at work in it.
        """
        if self._claim is None and self.path.is_dir():
            self._claim = Claim(self.path)

    def release(self) -> None:
        """Let other processes in."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def prepare(self) -> None:
        """Make the folder, and clear the leftovers of a save that was killed.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-test-{os.getpid()}"
            probe.touch()
            probe.unlink()
            for leftover in [*self.path.glob(".*.part"), *self.checkpoints.glob(".*.part")]:
                leftover.unlink()
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write the output folder {self.path} ({error.strerror or error}); "
            "set --output to a folder that you can write"
        )

    def set_aside(self) -> Path | None:
        """Rename an earlier run's folder out of the way; nothing is overwritten.

        Raises:
            UserError: it cannot be renamed.
        """
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        self.release()
        try:
            self.path.rename(aside)
        except OSError as error:
            raise self._unwritable(error) from None
        return aside

    def was_started_by_this_launch(self) -> bool:
        """Whether the run in the folder is an earlier life of this command."""
        try:
            before = self.launch.read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return not set(before).isdisjoint(launches(again=True))

    def find_resume(self) -> tuple[Path | None, list[Path]]:
        """The newest whole checkpoint to go on from, and the damaged ones passed over."""
        others = [path for path in self.checkpoints.glob("*.pth") if path != self.last]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return newest_whole([self.last, *others])

    def keep_last(self, count: int) -> None:
        """Before a new `last.pth`: keep the old one as `last.1.pth`, that as `last.2.pth`, ...

        `last.pth` stays in its place until the new one takes it, so that at any instant the newest
        whole checkpoint is there.

        Args:
            count: of checkpoints to keep, the new one included.

        Raises:
            RunFailed: the folder cannot be written.
        """
        files = [self.last, *(self.checkpoints / f"last.{n}.pth" for n in range(1, count))]
        try:
            for newer, older in reversed(list(pairwise(files))):
                if newer is not self.last and newer.exists():
                    newer.replace(older)
            if count > 1 and self.last.exists():
                second = self.checkpoints / f".{files[1].name}.part"
                second.unlink(missing_ok=True)
                _link(self.last, second)
                second.replace(files[1])
        except OSError as error:
            raise RunFailed(f"cannot write {self.checkpoints} ({error.strerror})") from error

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a checkpoint whole or not at all."""
        save_state(path, state)

    def write_result(self, values: Mapping[str, Any]) -> None:
        write_text(self.result, json.dumps(values, indent=2) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """The result of a finished run; None while it is not."""
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) else None


def load_resume(
    path: Path, recipe: Mapping[str, Any], not_recipe: tuple[str, ...]
) -> dict[str, Any]:
    """A checkpoint to go on from, checked to be of the same recipe.

    Raises:
        UserError: the file is not a run's checkpoint, or its recipe differs (naming the fields).
    """
    state = load_file(path)
    if not isinstance(state.get("config"), dict) or "position" not in state:
        raise UserError(f"{path} is not a checkpoint of a run here: it cannot be resumed")
    # The names of the classes are for those who use the student; older checkpoints lack them.
    changed = differences(state["config"], recipe, (*not_recipe, "identity.class_names"))
    if changed:
        raise UserError(
            f"{path} belongs to another recipe ({'; '.join(changed[:5])}): use another --name, "
            "the old values, or --resume none"
        )
    return state


class Opened(NamedTuple):
    """How a run starts: the state to go on from (None: from its start), and what to tell."""

    state: dict[str, Any] | None
    notes: list[str]

    @property
    def updates(self) -> int:
        """Updates already made."""
        return self.state["position"]["updates"] if self.state else 0


def open_run(
    folder: RunFolder,
    resume: str,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    not_recipe: tuple[str, ...],
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
        config_text: what `config.yaml` shall hold instead of `settings`.

    Raises:
        UserError: the folder cannot be written or another process writes it, a process cannot see
            it, or the checkpoint belongs to another recipe.
    """
    dist.from_main(folder.claim)
    try:
        start, damaged = dist.from_main(lambda: _starting_point(folder, resume))
        path = start if isinstance(start, Path) else None
        if path is not None and (blind := dist.ranks_where(not path.is_file())):
            raise UserError(
                f"process {blind[0]} does not see {path}: --output must be a folder that all "
                "machines share"
            )
        state = load_resume(path, {**settings, **identity}, not_recipe) if path else None
        text = config_text or dump_yaml(settings)
        notes = dist.from_main(lambda: _make_ready(folder, text, start, damaged))
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


def launches(again: bool = False) -> list[str]:
    """What started this process and may start it again: torchrun's agent, a SLURM job.

    Args:
        again: only those that have, or may have, started it before.
    """
    found = []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        found.append(f"torchrun {platform.node()} {os.getppid()}")
    job, count = (os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "RESTART_COUNT"))
    if job and not (again and count in ("", "0")):
        found.append(f"slurm {job}")
    return found


def _link(file: Path, name: Path) -> None:
    """A second name for a file; where the file system has no hard links, a copy."""
    try:
        name.hardlink_to(file)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        shutil.copy2(file, name)
