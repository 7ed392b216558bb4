"""One run, for both halves: its folder under a lock, where it goes on, its log, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srd.config.fields import Plan
from srd.device import Precision, device_name
from srd.distributed import processes
from srd.evaluation.accuracy import Accuracy
from srd.run.folder import RunFolder
from srd.run.log import RunLog, clock
from srd.run.provenance import provenance
from srd.run.resume import Opened, instead, open_run
from srd.run.state import Misfit
from srd.training.fit import check_fits
from srd.training.loop import Loop


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint must agree on with the run that goes on from it, besides the settings.

    None where a half does not know it, or its settings say it.
    """

    model: str
    train_images: int
    trained: str = "student"
    teacher: str | None = None
    teacher_sha256: str | None = None
    num_classes: int | None = None
    class_names: list[str] | None = None
    seed: int | None = None
    lr_factor: int | None = None


@dataclass(kw_only=True)
class Session:
    """A run that is open: nobody else writes its folder until it is left.

    Args:
        settings: the resolved configuration, saved in every checkpoint.
        opened: where the run starts.
    """

    folder: RunFolder
    log: RunLog
    settings: Mapping[str, Any]
    identity: Identity
    opened: Opened

    @property
    def state(self) -> Mapping[str, Any] | None:
        """Of the checkpoint to go on from; None from the start."""
        return self.opened.state

    @property
    def saved_with(self) -> dict[str, Any]:
        """What a checkpoint says of its run."""
        return {**self.settings, "identity": asdict(self.identity)}

    def start(
        self,
        loop: Loop,
        *,
        measure_teacher: Callable[[], Accuracy | None] | None = None,
    ) -> None:
        """Put `loop` where the run was; at its very start, measure the teacher.

        A checkpoint that the loop cannot go on from is passed over for the one before.

        Raises:
            UserError: there is none before, or the checkpoint is one that was asked for.
        """
        while self.opened.state is not None:
            try:
                check_fits(loop, self.opened.state)
            except Misfit as misfit:
                self.opened = instead(self.opened, misfit)
                self.log.start_at(self.opened.updates)
                self.log.lines(self.opened.notes)
            else:
                break
        if self.opened.state is None:
            self.log.settings(self.folder.path.name, self.settings)
        if self.opened.state is not None:
            loop.load_state(self.opened.state)
        elif measure_teacher is not None and (accuracy := measure_teacher()) is not None:
            row = {"model": "teacher", "epoch": 0, "step": 0, **accuracy.row()}
            self.log.row("eval", row, board={})

    def finish(
        self,
        loop: Loop,
        accuracy: Accuracy,
        *,
        plan: Plan,
        precision: Precision,
        about: Mapping[str, Any],
    ) -> None:
        """`result.json` and the closing line, on the main process.

        Args:
            accuracy: of the student that was tested.
            about: what the half adds to the result.
        """
        if not processes.is_main():
            return
        position = loop.position
        self.folder.write_result(
            {
                **asdict(self.identity),
                **about,
                **accuracy.row(),
                "best_acc1": position.best_acc1,
                "best_epoch": position.best_epoch,
                "epochs": plan.epochs,
                "updates": position.updates,
                "images_trained": position.updates * plan.batch_size,
                "seconds": round(position.seconds, 1),
                "device": device_name(precision.device),
                "precision": str(precision),
                "processes": processes.world_size(),
                **provenance(),
            }
        )
        self.log.info(
            f"done in {clock(position.seconds)}: acc1 {accuracy.acc1:.2f}, best "
            f"{position.best_acc1:.2f} in epoch {position.best_epoch + 1}; everything is in "
            f"{self.folder.path}"
        )


@contextmanager
def open_session(
    folder: RunFolder,
    identity: Identity,
    *,
    settings: Mapping[str, Any],
    not_recipe: tuple[str, ...],
    resume: str,
    upgrade: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: settings,
    config_text: str | None = None,
    copy_to: Path | None = None,
) -> Iterator[Session | None]:
    """The run in `folder`, from its start or from where it was; None, and a word, if it is finished.

    Args:
        not_recipe: settings that may differ from the checkpoint's.
        resume: see `srd.run.resume.open_run`.
        upgrade: settings of an earlier version as today's.
        config_text: what `config.yaml` shall hold instead of `settings`.
        copy_to: a second place for the lines of `log.txt`.

    Raises:
        UserError: as `open_run`, or the log cannot be written.
    """
    opened = open_run(
        folder,
        resume,
        settings=settings,
        identity=asdict(identity),
        not_recipe=not_recipe,
        upgrade=upgrade,
        config_text=config_text,
    )
    try:
        if (result := opened.result) is not None:
            if processes.is_main():
                scores = f"acc1 {result['acc1']:.2f}, best {result['best_acc1']:.2f}"
                print(f"already finished: {scores}; see {folder.path}")
            yield None
            return
        log = RunLog(folder.path, processes.is_main(), opened.updates, copy_to)
        try:
            log.lines(opened.notes)
            yield Session(
                folder=folder, log=log, settings=settings, identity=identity, opened=opened
            )
        finally:
            log.close()
    finally:
        folder.release()
