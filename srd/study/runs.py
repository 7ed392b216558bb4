"""A study's runs: each trained as `srd train` does, selected on held-out images, then tested.

Epochs and searched settings are chosen on a part of the training images (`data.select_fraction`)
that no run trains on. The reported images are looked at once for each run, when all is chosen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from srd.config.checks import idle_weights
from srd.config.effects import configure
from srd.config.fields import NOT_RECIPE, Config, Distill
from srd.config.layers import Layer, differences, flatten, nested, read_yaml, to_mapping
from srd.errors import UserError
from srd.evaluation.shifts import ShiftError, shift_error_of
from srd.files.checkpoint import write_text
from srd.method.losses import LOSSES
from srd.models.outputs import width
from srd.models.students import find, open_student
from srd.models.teacher import full_teacher_name, known_sha256
from srd.run.folder import RunFolder
from srd.run.log import read_metrics
from srd.study.studies import (
    SEARCH_SEED,
    SHARED,
    WITHOUT_PROJECTOR,
    Study,
    Variant,
    as_published,
)
from srd.study.tested import TESTED, Tested, history, measured, read_tested
from srd.training.teaching import look_for_teacher, with_known_teacher
from srd.training.train import train_one_of_several

SELECT_FRACTION = 0.2  # where the configuration holds nothing out itself
# Memory chooses the second. All evaluate alike: the best epoch is one of those.
MAY_DIFFER = tuple({*NOT_RECIPE, "train.micro_batch"} - {"train.evaluate_every"})


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
        self.hashes: dict[str, str | None] = {}  # of teachers' files
        self.output = Path(self.base.output).expanduser() / name

    def variants(self) -> list[Variant]:
        """Those that say something here: views come again within the run, no projector is needed."""
        epochs, without = self.base.train.epochs, WITHOUT_PROJECTOR.settings
        return [
            v
            for v in self.study.variants
            if (v.settings.get("cache.epochs") or 0) < epochs
            and (v.settings != without or self.widths_agree)
        ]

    @cached_property
    def widths_agree(self) -> bool:
        """Whether student and teacher have features of the same width.

        Raises:
            UserError: nobody knows one of them.
        """
        size, teacher = self.base.model.image_size, self.base.teacher
        pairs = (
            (self.base.model.name, size, "student"),
            (full_teacher_name(teacher.name), teacher.image_size or size, "teacher"),
        )
        for name, _, role in pairs:
            find(name, role=role)
        networks = (
            (open_student(name, num_classes=2, image_size=side, reads_features=True), side, role)
            for name, side, role in pairs
        )
        return len({width(n, "features", image_size=side, role=r) for n, side, r in networks}) == 1

    def teachers(self) -> str:
        """Names of all who teach."""
        own, taught = str(self.base.teacher.name), (v for v in self.variants() if v.is_taught)
        return " and ".join(dict.fromkeys(v.settings.get("teacher.name", own) for v in taught))

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
            changed = differences(read_yaml(folder.config), to_mapping(config), MAY_DIFFER)
            if not changed and variant.is_taught:
                changed = self.other_teacher(config, folder)
            if changed:
                raise UserError(
                    f"{folder.path} was trained with other settings ({changed[0]}): choose another "
                    "--output, or remove it"
                )
        return config, folder

    def other_teacher(self, config: Config, folder: RunFolder) -> list[str]:
        """The teacher's file, where it is another than the finished run in `folder` had."""
        teacher = with_known_teacher(config).teacher
        place = str(teacher.checkpoint)
        if place not in self.hashes:
            self.hashes[place] = known_sha256(teacher)
        had, has = (folder.finished() or {}).get("teacher_sha256"), self.hashes[place]
        if not had or not has or had == has:
            return []
        return [f"the teacher's SHA-256: {had[:8]} -> {has[:8]}"]

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

        One cache for each seed, teacher (two may have one name), repetition of views, and
        thing that losses read.
        """
        if not variant.is_taught:
            return {}
        settings = {**flatten(to_mapping(self.base)), **variant.settings}
        reads = LOSSES[settings["distill.loss"]["name"]].reads
        own = [folder_name(variant.label, 1)] if "teacher.name" in variant.settings else []
        parts = [*own, settings["teacher.name"], f"seed{seed}"]
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
        result = folder.finished() or {}
        commit = result.get("git_commit")
        path, key = folder.path / TESTED, variant.search.key if variant.search else None
        chosen = self.searched_value(key, factor) if key and self.budget.search else None
        if path.is_file():
            return replace(read_tested(path), chosen=chosen, commit=commit)
        reported = replace(config, data=replace(config.data, select_fraction=None))
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
            commit=commit,
        )
        write_text(path, json.dumps(asdict(tested), indent=2) + "\n")
        return tested


def folder_name(label: str, factor: float) -> str:
    """`layer`, or `layer_x4` where a searched setting is another than the configuration's."""
    plain = re.sub(r"[^a-z0-9]+", "_", label.partition(" (")[0].lower()).strip("_")
    return plain if factor == 1 else f"{plain}_x{factor:g}"
