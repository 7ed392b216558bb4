"""A study's runs: each trained as `srd train` does, selected on held-out images, then tested.

Epochs and searched settings are chosen on a part of the training images (`data.select_fraction`)
that no run trains on. The reported images are looked at once for each run, when all is chosen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked

from srd.config.checks import idle_weights
from srd.config.effects import configure
from srd.config.fields import NOT_RECIPE, Config, Distill
from srd.config.layers import Layer, build, differences, flatten, nested, read_yaml, to_mapping
from srd.errors import UserError
from srd.evaluation.of_checkpoint import evaluate_checkpoint
from srd.evaluation.shifts import ShiftError, shift_error_of
from srd.files.checkpoint import write_text
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small
from srd.method.losses import LOSSES
from srd.run.folder import RunFolder
from srd.run.log import read_metrics
from srd.strict import STRICT
from srd.study.studies import SEARCH_SEED, SHARED, Study, Variant, as_published
from srd.training.teaching import look_for_teacher
from srd.training.train import train_one_of_several

SELECT_FRACTION = 0.2  # where the configuration holds nothing out itself
SEEN = ("epoch", "acc1", "effective_rank", "correlation", "agreement")
TESTED = "tested.json"  # in a run's folder: its accuracies on the reported images


@checked(config=STRICT, frozen=True, kw_only=True)
class Tested:
    """One run. Accuracies are top-1 in percent.

    Args:
        selected, last: on the reported images, of the epoch that was best on the held-out ones,
            and after the last.
        held_out: of that best epoch, on the held-out images.
        best_epoch: from 0.
        effective_rank: of the projector after the last epoch; None without one.
        chosen: the value of the searched setting; None where nothing was searched.
        correlation: of the projector's inputs and outputs in the last training batch.
        singular_values: of the projector after the last epoch, the largest first.
        shift_error: `srd.evaluation.shifts.ShiftError.features` after the last epoch.
        same_class: of 100 shifted images, how many keep their class.
        history: `epoch` of each evaluation, and what was seen there.
    """

    seed: int
    selected: float
    last: float
    held_out: float
    best_epoch: int
    effective_rank: float | None
    chosen: float | None
    seconds: float
    images: int
    correlation: float | None = None
    singular_values: list[float] = field(default_factory=list)
    shift_error: float | None = None
    same_class: float | None = None
    history: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a study may cost.

    Args:
        seeds: of the reported runs.
        search: whether a setting of each variant is tuned first.
        layers: settings over those of the configuration, each with its source.
    """

    seeds: Sequence[int]
    search: bool
    layers: Sequence[Layer] = ()


class Runs:
    """Trains, or takes up, the runs of a study in `<output>/<name>/`.

    Args:
        shared: the configuration's layers.
    """

    def __init__(self, name: str, study: Study, shared: Sequence[Layer], budget: Budget) -> None:
        self.name = study.runs_of or name
        self.study, self.shared, self.budget = study, shared, budget
        self.base = self.configured({}, self.name)
        self.output = Path(self.base.output).expanduser() / name

    def variants(self) -> list[Variant]:
        """Those whose views would come again within the run, and all others."""
        epochs = self.base.train.epochs
        return [v for v in self.study.variants if (v.settings.get("cache.epochs") or 0) < epochs]

    def configured(self, settings: Mapping[str, Any], name: str, seed: int = 0) -> Config:
        """The configuration of a run; weights that its loss does not read are left out."""
        if loss := settings.get("distill.loss"):
            idle = idle_weights(loss["name"])
            settings = {**settings, **{f"distill.{key}": getattr(Distill, key) for key in idle}}
        fraction = Layer("the study", nested("data.select_fraction", SELECT_FRACTION))
        own = {"seed": seed, "name": name, "train.keep_best": True, **settings}
        given = [Layer("the study", nested(key, value)) for key, value in own.items()]
        return configure([fraction, *self.shared], [*self.budget.layers, *given], "student")

    def check(self) -> None:
        """Every run's configuration and teacher, and that what is there was trained with the same.

        Raises:
            UserError: one that cannot be, or a run with other settings; nothing is held out, or a
                teacher is not there.
        """
        if self.base.data.select_fraction is None:
            raise UserError(
                "data.select_fraction: null lets a study choose on the images that it reports: give a "
                "fraction, or leave it out"
            )
        for variant in self.variants():
            seeds = (*self.budget.seeds, SEARCH_SEED)
            of = [
                self.planned(variant, f, seed)[0] for f in self.factors(variant) for seed in seeds
            ]
            if any(c.cache.path and not Path(c.cache.path).exists() for c in of):
                look_for_teacher(of[0])  # all have the same

    def all(self) -> Iterator[tuple[Variant, list[Tested]]]:
        """Every variant with its tested runs, as they are done."""
        for variant in self.variants():
            for row, factor in self.rows(variant, self.searched(variant)):
                yield row, [self.test(row, factor, seed) for seed in self.budget.seeds]

    def rows(self, variant: Variant, chosen: float) -> list[tuple[Variant, float]]:
        """What is reported of a variant whose searched setting has the factor `chosen`."""
        rows = [(variant, chosen)]
        if self.study.published and variant.has_authors and chosen != 1:
            rows.append((as_published(variant), 1.0))
        return rows

    def factors(self, variant: Variant) -> tuple[float, ...]:
        """Those of the variant's searched setting that are tried."""
        return variant.search.factors if variant.search and self.budget.search else (1.0,)

    def searched(self, variant: Variant) -> float:
        """The factor of the variant's searched setting that is best on the held-out images."""
        if len(factors := self.factors(variant)) == 1:
            return factors[0]
        scores = {
            factor: self.held_out(self.trained(variant, factor, SEARCH_SEED)[1])
            for factor in factors
        }
        return max(scores, key=lambda factor: (scores[factor], -abs(factor - 1)))

    def planned(self, variant: Variant, factor: float, seed: int) -> tuple[Config, RunFolder]:
        """A run of a variant, trained or not.

        Raises:
            UserError: it is there with other settings, those of another budget say.
        """
        settings = {**variant.settings, **self.cached(variant, seed)}
        if variant.search is not None:
            settings[variant.search.key] = self.searched_value(variant.search.key, factor)
        name = f"{self.place(variant, factor)}_seed{seed}"
        config = self.configured(settings, name, seed)
        folder = RunFolder(config.output, config.name)
        if folder.config.is_file():
            own = (*NOT_RECIPE, "train.micro_batch")  # a run may choose it by the memory there
            if changed := differences(read_yaml(folder.config), to_mapping(config), own):
                raise UserError(
                    f"{folder.path} was trained with other settings ({changed[0]}): choose another "
                    "--output, or remove it"
                )
        return config, folder

    def place(self, variant: Variant, factor: float) -> str:
        """Where a variant's runs are: some are every study's, unless it measures more than others."""
        for name, settings in SHARED.items():
            if variant.settings == settings and self.study.shows != "shift_error":
                return f"shared/{folder_name(name, factor)}"
        return f"{self.name}/{folder_name(variant.label, factor)}"

    def trained(self, variant: Variant, factor: float, seed: int) -> tuple[Config, RunFolder]:
        """The finished run of a variant."""
        config, folder = self.planned(variant, factor, seed)
        if folder.finished() is None:
            train_one_of_several(config)
        return config, folder

    def searched_value(self, key: str, factor: float) -> float:
        """The searched setting itself."""
        return float(flatten(to_mapping(self.base))[key]) * factor

    def cached(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Settings that let all variants of a seed share what the teacher says, to the bit.

        One cache for each seed, teacher, repetition of views, and thing that losses read.
        """
        if not variant.is_taught:
            return {}
        settings = {**flatten(to_mapping(self.base)), **variant.settings}
        reads = LOSSES[settings["distill.loss"]["name"]].reads
        parts = [settings["teacher.name"], f"seed{seed}"]
        parts += [reads] if reads in ("tokens", "maps") else []
        parts += [f"of{count}"] if (count := settings.get("cache.epochs")) else []
        place = Path(settings["output"]) / "teacher_caches" / "_".join(map(str, parts))
        return {"cache.path": str(place), "cache.dtype": "float32"}

    @staticmethod
    def held_out(folder: RunFolder) -> float:
        """Best top-1 on the held-out images."""
        return float((folder.finished() or {})["best_acc1"])

    def test(self, variant: Variant, factor: float, seed: int) -> Tested:
        """A run's accuracies on the reported images; measured once, then remembered.

        What was chosen is not the run's: one with the factor 1 is also that of a variant without a search.
        """
        config, folder = self.trained(variant, factor, seed)
        path, key = folder.path / TESTED, variant.search.key if variant.search else None
        chosen = self.searched_value(key, factor) if key and self.budget.search else None
        if path.is_file():
            return replace(read_tested(path), chosen=chosen)
        reported = replace(config, data=replace(config.data, select_fraction=None))
        result = folder.finished() or {}
        last = selected = measured(reported, folder.last)
        rows = read_metrics(folder.metrics, "eval")
        if rows[-1]["epoch"] != result["best_epoch"]:
            selected = measured(reported, folder.best)
        shown = self.study.shows == "shift_error"
        shifts = shift_error_of(reported, folder.last) if shown else ShiftError(None, None)
        tested = Tested(
            seed=seed,
            selected=selected.acc1,
            last=last.acc1,
            held_out=self.held_out(folder),
            best_epoch=int(result["best_epoch"]),
            effective_rank=rows[-1].get("effective_rank"),
            chosen=chosen,
            seconds=float(result["seconds"]),
            images=last.images,
            correlation=rows[-1].get("correlation"),
            singular_values=rows[-1].get("singular_values", []),
            shift_error=shifts.features,
            same_class=shifts.same_class,
            history=history(rows),
        )
        write_text(path, json.dumps(asdict(tested), indent=2) + "\n")
        return tested


def measured(config: Config, file: Path) -> Any:
    """The accuracy of a checkpoint, without a word."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return evaluate_checkpoint(config, str(file))


def read_tested(path: Path) -> Tested:
    try:
        values = json.loads(read_small(path, LIMITS.description_bytes))
        return build(Tested, [Layer(str(path), values)])
    except (OSError, ValueError, RecursionError, Refused, UserError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}): remove it, and it is made again") from None


def folder_name(label: str, factor: float) -> str:
    """`layer`, or `layer_x4` where a searched setting is another than the configuration's."""
    plain = re.sub(r"[^a-z0-9]+", "_", label.partition(" (")[0].lower()).strip("_")
    return plain if factor == 1 else f"{plain}_x{factor:g}"


def history(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """What every evaluation saw, each as a list over them."""
    names = [name for name in SEEN if all(name in row for row in rows)]
    return {name: [float(row[name]) for row in rows] for name in names}
