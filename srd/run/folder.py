"""A run's folder: where its files are, how it goes on after a stop, and what it leaves at the end."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from srd.errors import RunFailed, UserError
from srd.files.checkpoint import newest_whole, save_state, write_text
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small
from srd.run.lock import Claim
from srd.strict import plain_name

# What a run leaves in its folder, besides what is hidden.
OWN = {
    "checkpoints", "config.yaml", "log.txt", "metrics.jsonl", "predictions.json", "result.json",
    "student.safetensors", "tensorboard", "wandb",
}  # fmt: skip

INNER = ("checkpoints", "tensorboard", "wandb")  # the folders among them

# What runs are measured by, of classes or of unlabelled pictures, with its range.
SCORES = {"acc1": (0, 100), "distance": (-1e9, 1e9)}


class RunFolder:
    """`<output>/<name>/` and the files in it.

    Args:
        name: None where `output` is the run's folder itself.

    Raises:
        UserError: `name` leads out of `output`, or no file system takes it.
    """

    def __init__(self, output: str | Path, name: str | None = None) -> None:
        try:
            self.path = Path(os.path.expanduser(output)) / (
                "" if name is None else plain_name(name)
            )
        except ValueError as error:
            raise UserError(f"--name {error}, not {str(name)[:60]!r}") from None
        self._inode: tuple[int, int] | None = None  # of the folder, since `prepare`
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.pth"
        self.best = self.checkpoints / "best.pth"
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.student = self.path / "student.safetensors"
        self.predictions = self.path / "predictions.json"
        self.result = self.path / "result.json"
        self.launch = self.path / ".launch"
        self._claim: Claim | None = None

    def claim(self) -> None:
        """Keep other processes out, if the folder is there, until `release` or this one's end.

        Raises:
            UserError: another process is at work in it.
        """
        try:
            there = self.path.is_dir()
        except OSError as error:  # a path that is too long
            raise self._unwritable(error) from None
        if self._claim is None and there:
            self._claim = Claim(self.path)

    def release(self) -> None:
        """Let other processes in."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def prepare(self) -> None:
        """Make the folder, and clear the leftovers of a save that was killed.

        Raises:
            UserError: it cannot be written, or a link in it leads to where a run would write.
        """
        for inner in (self.path / name for name in INNER):
            if inner.is_symlink():
                raise UserError(
                    f"{inner} is a link, and a run writes below its own folder only: put the folder "
                    "itself there, or link the whole --output"
                )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._inode = _inode(self.path)
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

    def check_there(self) -> None:
        """Raise a RunFailed where the folder that `prepare` made is gone, or is another one now."""
        if self._inode is not None and _inode(self.path) != self._inode:
            raise RunFailed(
                f"the run's folder {self.path} was moved or deleted meanwhile: nothing more is "
                "written; where its checkpoints are, the run can go on"
            )

    def check_ours(self, *, to_rename: bool) -> None:
        """Raise a UserError where the folder is somebody's, and a run would rename or overwrite it.

        Other files may lie beside a run's, such as a scheduler's log.
        """
        names = self._names()
        of_a_run = self.checkpoints.is_dir() and (self.config.is_file() or names <= OWN)
        if not of_a_run and (names if to_rename else names & OWN):
            raise UserError(
                f"{self.path} is no run's folder (it holds {min(names)[:60]!r}): use another --name"
            )

    def _names(self) -> set[str]:
        """What lies in the folder and is not hidden."""
        try:
            return {name for name in os.listdir(self.path) if not name.startswith(".")}
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as error:
            raise self._unwritable(error) from None

    def set_aside(self) -> Path | None:
        """Rename an earlier run's folder out of the way; nothing is overwritten.

        Raises:
            UserError: it cannot be renamed, or it is no run's.
        """
        if not self._names():
            return None
        self.check_ours(to_rename=True)
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
            before = read_small(self.launch, LIMITS.text).decode().splitlines()
        except (OSError, ValueError, Refused):
            return False
        return not set(before).isdisjoint(launches(again=True))

    def has_checkpoints(self) -> bool:
        """Whether there is one, whole or not, to go on from."""
        return any(path.is_file() for path in self.checkpoints.glob("*.pth"))

    def find_resume(self, unfit: Collection[Path] = ()) -> tuple[Path | None, list[Path]]:
        """The newest whole checkpoint to go on from, and the damaged ones passed over.

        Args:
            unfit: checkpoints that are whole, and not to be gone on from.
        """
        others = [p for p in self.checkpoints.glob("*.pth") if p != self.last and p.is_file()]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return newest_whole(path for path in (self.last, *others) if path not in unfit)

    def keep_last(self, count: int) -> None:
        """Before a new `last.pth`: keep the old one as `last.1.pth`, that as `last.2.pth`, ...

        `last.pth` stays in its place until the new one takes it, so that at any instant the newest
        whole checkpoint is there.

        Args:
            count: of checkpoints to keep, the new one included.

        Raises:
            RunFailed: the folder cannot be written.
        """
        self.check_there()
        files = [self.last]
        while len(files) < count and files[-1].exists():
            files.append(self.checkpoints / f"last.{len(files)}.pth")
        try:
            for newer, older in reversed(list(pairwise(files))):
                if newer is not self.last and newer.exists():
                    newer.replace(older)
            if len(files) > 1:
                second = self.checkpoints / f".{files[1].name}.part"
                second.unlink(missing_ok=True)
                _link(self.last, second)
                second.replace(files[1])
        except OSError as error:
            raise RunFailed(f"cannot write {self.checkpoints} ({error.strerror})") from error

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a checkpoint whole or not at all."""
        self.check_there()
        save_state(path, state)

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Write `result.json`: the run is finished."""
        self.check_there()
        write_text(self.result, json.dumps(values, indent=2) + "\n")

    def make_slim(self) -> None:
        """Remove the checkpoints; who goes on from the run's end needs them, and nobody else."""
        self.check_there()
        try:
            shutil.rmtree(self.checkpoints)
        except OSError as error:
            raise RunFailed(f"cannot remove {self.checkpoints} ({error.strerror})") from error

    def size(self, path: Path | None = None) -> int:
        """Bytes of the files below the folder, or below `path`; one with two names counts once."""
        files = [file.stat() for file in (path or self.path).rglob("*") if file.is_file()]
        return sum({(f.st_dev, f.st_ino): f.st_size for f in files}.values())

    def read_result(self) -> dict[str, Any] | None:
        """What stands in `result.json`; None where there is no mapping."""
        try:
            result = json.loads(read_small(self.result, LIMITS.description_bytes))
        except (OSError, ValueError, RecursionError, Refused):
            return None
        return result if isinstance(result, dict) else None

    def finished(self) -> dict[str, Any] | None:
        """The result of a finished run, which has scores; None while it is not."""
        result = self.read_result() or {}
        for kind, (least, most) in SCORES.items():
            scores = [result.get(name) for name in (kind, f"best_{kind}")]
            if all(isinstance(score, (int, float)) and least <= score <= most for score in scores):
                return result
        return None


def _inode(path: Path) -> tuple[int, int] | None:
    """What tells a folder from another of the same name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def launches(again: bool = False) -> list[str]:
    """What started this process and may start it again: torchrun's agent, a SLURM job.

    Args:
        again: only those that have, or may have, started it before.
    """
    launches = []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launches.append(f"torchrun {platform.node()} {os.getppid()}")
    job, count = (os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "RESTART_COUNT"))
    if job and not (again and count in ("", "0")):
        launches.append(f"slurm {job}")
    return launches


def _link(file: Path, name: Path) -> None:
    """A second name for a file; where the file system has no hard links, a copy."""
    try:
        name.hardlink_to(file)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        shutil.copy2(file, name)
