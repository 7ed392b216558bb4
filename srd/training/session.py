"""One run, for both halves: its folder under a lock, where it goes on, its log, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srd.config.fields import Plan
from srd.config.layers import dump_yaml
from srd.device import Precision, device_name
from srd.distributed import processes
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy, Measured
from srd.files.checkpoint import write_text
from srd.run.extension import Pace, as_comments, extend, images_trained, lines
from srd.run.folder import SCORES, RunFolder
from srd.run.log import RunLog, clock
from srd.run.opening import instead, open_run
from srd.run.provenance import provenance
from srd.run.resume import SLIM, Opened
from srd.run.state import MOST, Misfit
from srd.run.tracking import Tracking
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
        config_text: what config.yaml holds.
        slim: remove the checkpoints when the run is done.
    """

    folder: RunFolder
    log: RunLog
    settings: Mapping[str, Any]
    identity: Identity
    opened: Opened
    config_text: str  # of config.yaml
    slim: bool

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
        if self.opened.changed:
            self.extend(loop)
            return
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

    def extend(self, loop: Loop) -> None:
        """Put `loop` where the run was, under other settings, and save it before its next step.

        From then on it is a run of these settings, whose command goes on with or without --extend.

        Raises:
            UserError: the checkpoint is none of a network, or a loss, of these settings.
        """
        opened, search = self.opened, self.opened.search
        assert opened.state is not None and search is not None and search.pace is not None
        state = extend(opened.state, opened.changed, search.pace)
        try:
            check_fits(loop, state, changed=True)
        except Misfit as misfit:
            what = "; ".join(opened.changed[:5])
            raise UserError(
                f"--extend cannot change {what}: in {opened.start.path}, {misfit}"
            ) from None
        self.log.lines(lines(state, opened.state, search.pace.epochs))
        loop.load_state(state, changed=True)
        self.log.start_at(state["position"]["updates"])
        if processes.is_main():
            self.folder.result.unlink(missing_ok=True)  # it is no finished run any more
        loop.save_last()
        loop.saver.wait()
        if processes.is_main():
            write_text(self.folder.config, self.config_text + as_comments(state["extended"]))

    def finish(
        self,
        loop: Loop,
        accuracy: Measured,
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
        result = {
            **asdict(self.identity),
            **about,
            **accuracy.row(),
            **accuracy.best(position.best_acc1),
            "best_epoch": position.best_epoch,
            "epochs": plan.epochs,
            "updates": position.updates,
            "images_trained": images_trained(loop.extended, position.updates, plan.batch_size),
            "seconds": round(position.seconds, 1),
            "device": device_name(precision.device),
            "precision": str(precision),
            "processes": processes.world_size(),
            **provenance(),
            **({"extended": loop.extended} if loop.extended else {}),
        }
        slim = {SLIM: self.saved_with} if self.slim else {}
        self.folder.write_result({**result, **slim})
        self.log.result(result)
        if self.slim:
            self.folder.make_slim()
        self.log.info(
            f"done in {clock(position.seconds)}: {accuracy.told(position.best_acc1)} in epoch "
            f"{position.best_epoch + 1}; everything is in {self.folder.path} ({self.room()})"
        )

    def room(self) -> str:
        """What the folder takes, and what it could."""
        mb = [self.folder.size(path) / 1e6 for path in (None, self.folder.checkpoints)]
        if self.slim:
            return f"{mb[0]:.1f} MB, without checkpoints"
        return f"{mb[0]:.1f} MB, {mb[1]:.1f} of them checkpoints, which --slim removes"


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
    pace: Pace | None = None,
    slim: bool = False,
    track: str | None = None,
) -> Iterator[Session | None]:
    """The run in `folder`, from its start or from where it was; None, and a word, if it is finished.

    Args:
        not_recipe: settings that may differ from the checkpoint's.
        resume: see `srd.run.opening.open_run`.
        upgrade: settings of an earlier version as today's.
        config_text: what `config.yaml` shall hold instead of `settings`.
        copy_to: a second place for the lines of `log.txt`.
        pace: how long the run is, where it may go on under other settings (--extend).
        slim: remove the checkpoints when the run is done, or has been before.
        track: the tracker that the run is sent to, one that `check_tracker` has passed.

    Raises:
        UserError: as `open_run`, or the log cannot be written.
    """
    text = config_text or dump_yaml(settings)
    opened = open_run(
        folder,
        resume,
        settings=settings,
        identity=asdict(identity),
        not_recipe=not_recipe,
        upgrade=upgrade,
        config_text=text,
        pace=pace,
    )
    try:
        if (result := opened.result) is not None:
            if processes.is_main():
                kind = next(name for name in SCORES if name in result)
                scores = f"{kind} {result[kind]:.2f}, best {result[f'best_{kind}']:.2f}"
                print(f"already finished: {scores}; see {folder.path}")
                if slim and opened.state is not None:
                    folder.write_result({**result, SLIM: opened.state["config"]})
                    folder.make_slim()
                    print(f"without checkpoints, it takes {folder.size() / 1e6:.1f} MB")
            yield None
            return
        first = MOST if opened.changed else opened.updates  # rows are dropped when all fits
        here = track is not None and processes.is_main()
        tracking = Tracking(str(track), folder.path, settings) if here else None
        processes.from_main(lambda: tracking.check() if tracking is not None else None)
        log = RunLog(folder.path, processes.is_main(), first, copy_to, tracking)
        try:
            log.lines(opened.notes)
            yield Session(
                folder=folder,
                log=log,
                settings=settings,
                identity=identity,
                opened=opened,
                config_text=text,
                slim=slim,
            )
        finally:
            log.close()
    finally:
        folder.release()
