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
from typing import Any

from srd.errors import RunFailed, UserError
from srd.files.checkpoint import newest_whole, save_state, write_text
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
