"""Trackers: a run's settings, curves and result, sent to wandb, mlflow or trackio while it trains.

Each one's own library does the sending, and reads its own variables (WANDB_MODE, WANDB_PROJECT,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, TRACKIO_SPACE_ID, TRACKIO_PROJECT, ...). No pictures and
no files are sent. To add one: a class here, a line in `TRACKERS`, an extra in pyproject.toml.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from srd.config.layers import flatten
from srd.errors import UserError, nearest
from srd.files.opened import Refused, read_small
from srd.installed import need_extra
from srd.strict import plain_name

PROJECT = "srd"  # where the user's variables name no other
SECONDS = 30  # that a tracker may take to let go of a run
MOST_BYTES = 100_000
ID = ".tracker.json"  # in a run's folder: what each tracker knows it by


class Row(NamedTuple):
    """Numbers by name (`eval/acc1`), and the update after which they were measured."""

    step: int
    numbers: Mapping[str, float]


class Tracker(Protocol):
    """One run, as its tracker sees it. Whatever a method raises is told once, and nothing ends.

    `id` is what its tracker knows the run by; given to the constructor, the run goes on.
    """

    id: str

    def __init__(
        self, name: str, settings: Mapping[str, Any], folder: Path, id: str | None
    ) -> None: ...

    def log(self, rows: Sequence[Row]) -> None:
        """Send curves; a run that was killed sends some steps twice, with the same numbers."""

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """The run ends here; with its result, it is done."""


class Wandb:
    """Weights & Biases; WANDB_MODE=offline needs no network."""

    def __init__(
        self, name: str, settings: Mapping[str, Any], folder: Path, id: str | None
    ) -> None:
        import wandb

        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            finish_timeout=SECONDS,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=id,
            resume="allow" if id else None,
            dir=os.environ.get("WANDB_DIR", folder),
            reinit="create_new",
            settings=quiet,
        )
        self.run.config.update(dict(settings), allow_val_change=True)  # --extend changes some
        self.run.define_metric("*", step_metric="step")  # its own steps may not go back
        self.id = self.run.id

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.run.log({"step": row.step, **row.numbers})

    def finish(self, result: Mapping[str, Any] | None) -> None:
        self.run.summary.update({f"result/{key}": value for key, value in (result or {}).items()})
        self.run.finish(exit_code=1 if result is None else 0)


class Mlflow:
    """MLflow, on the server or in the folder that MLFLOW_TRACKING_URI says."""

    PARAMS, METRICS = 100, 1000  # of one request, at most

    def __init__(
        self, name: str, settings: Mapping[str, Any], folder: Path, id: str | None
    ) -> None:
        for variable, value in (
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # its own numbers wait for minutes
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
            ("MLFLOW_ALLOW_FILE_STORE", "true"),  # where somebody asks for a folder
        ):
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.client, self.metric = MlflowClient(), Metric
        if id is None:
            project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else None
            number = number or self.client.create_experiment(project)
            id = self.client.create_run(number, run_name=name).info.run_id
        self.id: str = id
        self.client.update_run(id, status="RUNNING")
        there = self.client.get_run(id).data.params
        told = {_taken_by_all(key): str(value)[:500] for key, value in flatten(settings).items()}
        params = [Param(key, value) for key, value in told.items() if key not in there]
        for start in range(0, len(params), self.PARAMS):
            self.client.log_batch(id, params=params[start : start + self.PARAMS])
        for key in told.keys() & there.keys():  # a param is for ever: --extend's become tags
            if told[key] != there[key]:
                self.client.set_tag(id, f"extended.{key}", told[key])

    def log(self, rows: Sequence[Row]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self.metric(_taken_by_all(key), value, now, row.step)
            for row in rows
            for key, value in row.numbers.items()
        ]
        for start in range(0, len(metrics), self.METRICS):
            self.client.log_batch(self.id, metrics=metrics[start : start + self.METRICS])

    def finish(self, result: Mapping[str, Any] | None) -> None:
        for key, value in (result or {}).items():
            self.client.set_tag(self.id, _taken_by_all(f"result.{key}"), str(value)[:500])
        self.client.set_terminated(self.id, "KILLED" if result is None else "FINISHED")


class Trackio:
    """Hugging Face's Trackio: on this machine, or in the Space that TRACKIO_SPACE_ID names."""

    def __init__(
        self, name: str, settings: Mapping[str, Any], folder: Path, id: str | None
    ) -> None:
        import trackio

        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=id or name,  # it goes on by the name
            config={_taken_by_all(key): value for key, value in flatten(settings).items()},
            resume="allow" if id else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.id = self.run.name
        self.last = 0

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.last = row.step
            self.run.log(dict(row.numbers), step=row.step)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        if result is not None:
            self.run.log({f"result/{key}": v for key, v in result.items()}, step=self.last)
        self.run.finish()


class Known(NamedTuple):
    """A tracker's class, the extra that installs its library, and what that imports as."""

    tracker: type[Tracker]
    extra: str
    package: str
    mend: str  # where it does not start


TRACKERS = {
    "wandb": Known(Wandb, "wandb", "wandb", "`wandb login`, or WANDB_MODE=offline"),
    "mlflow": Known(
        Mlflow, "mlflow", "mlflow", "MLFLOW_TRACKING_URI names a server, or file:mlruns"
    ),
    "trackio": Known(Trackio, "trackio", "trackio", "without TRACKIO_SPACE_ID it needs no network"),
}


def check_tracker(name: str | None) -> None:
    """Raise a UserError for a tracker that nobody knows, or whose library is not installed."""
    if name is None:
        return
    if name not in TRACKERS:
        hint = nearest(name, TRACKERS) or f": {', '.join(TRACKERS)}"
        raise UserError(f"--track: unknown tracker {name[:60]!r}{hint}")
    known = TRACKERS[name]
    need_extra(known.extra, known.package, what=f"runs with --track {name}")


def read_id(folder: Path, name: str) -> str | None:
    """What the tracker knows the run in `folder` by; None where it does not know it.

    The folder may be anybody's, and a tracker makes addresses and files of it: it is one plain name.
    """
    try:
        found = plain_name(json.loads(read_small(folder / ID, MOST_BYTES))[name])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, Refused):
        return None
    return found if "/" not in found else None


def _taken_by_all(key: str) -> str:
    """A name of the characters that MLflow takes, and a beginning that Trackio does."""
    return re.sub(r"[^\w\-. /]", "_", key).lstrip("_")[:250]
