"""A run's folder: where its files are, how it goes on after a stop, and what it leaves at the end."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from srd import dist
from srd.checkpoint import load_file, newest_whole, save_state, write_text
from srd.config import differences, dump_yaml
from srd.errors import EXIT_SIGINT, EXIT_SIGTERM, UserError

PACKAGES = ("torch", "torchvision", "timm", "torchdistill", "numpy", "pillow")


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
            raise UserError(
                f"cannot write the output folder {self.path} ({error.strerror or error}); "
                "set --output to a folder that you can write"
            ) from None

    def set_aside(self) -> Path | None:
        """Rename an earlier run's folder out of the way; nothing is overwritten."""
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        self.path.rename(aside)
        return aside

    def find_resume(self) -> tuple[Path | None, list[Path]]:
        """The newest whole checkpoint to go on from, and the damaged ones passed over."""
        others = [path for path in self.checkpoints.glob("*.pth") if path != self.last]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return newest_whole([self.last, *others])

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


def open_run(
    folder: RunFolder,
    resume: str,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    not_recipe: tuple[str, ...],
    config_text: str | None = None,
) -> dict[str, Any] | None:
    """Make a run's folder ready; the state to go on from, or None for a new run.

    Args:
        resume: `auto` (the newest whole checkpoint in the folder), `none` (a new run; an earlier
            one's folder is renamed), or a checkpoint file.
        settings: the resolved configuration, saved with the run.
        identity: what a checkpoint must agree on besides.
        not_recipe: settings that may differ from the checkpoint's.
        config_text: what `config.yaml` shall hold instead of `settings`.

    Raises:
        UserError: the folder cannot be written, or the checkpoint belongs to another recipe.
    """
    damaged: list[Path] = []
    path: Path | None = None
    if resume == "auto":
        path, damaged = folder.find_resume()
        if path is None and damaged:
            raise UserError(
                f"{damaged[0]} is damaged and there is no other checkpoint: --resume none starts anew"
            )
    elif resume != "none":
        path = Path(resume).expanduser()
    state = load_resume(path, {**settings, **identity}, not_recipe) if path else None
    if dist.is_main():
        if resume == "none" and (aside := folder.set_aside()):
            print(f"the earlier run is now {aside}")
        folder.prepare()
        write_text(folder.config, config_text or dump_yaml(settings))
        for file in damaged:
            print(f"{file} is damaged: passed over for {path}")
    dist.barrier()
    return state


class StopSignals:
    """SIGTERM and SIGINT ask the run to stop after the step that is under way.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @property
    def code(self) -> int:
        """The exit code for the signal received."""
        return EXIT_SIGINT if self.received == signal.SIGINT else EXIT_SIGTERM

    @contextmanager
    def listening(self) -> Iterator[StopSignals]:
        """Handle the signals inside; put the old handlers back after."""
        old = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number


def provenance() -> dict[str, Any]:
    """Versions, machine, command and git commit of this process, for `result.json`."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"command": " ".join(sys.argv), "versions": versions, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The checkout's commit, with `+changes` where tracked files differ from it."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
