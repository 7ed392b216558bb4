"""A study's runs: each trained as `srd train` does, selected on held-out images, then tested.

Epochs and searched settings are chosen on a part of the training images (`data.select_fraction`)
that no run trains on. The reported images are looked at once for each run, when all is chosen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked

from srd.config.effects import configure
from srd.config.fields import NOT_RECIPE, Config
from srd.config.layers import Layer, build, differences, flatten, nested, read_yaml, to_mapping
from srd.errors import UserError
from srd.evaluation.of_checkpoint import evaluate_checkpoint
from srd.files.checkpoint import load_file, write_text
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small
from srd.method.spectrum import effective_rank, singular_values
from srd.run.folder import RunFolder
from srd.strict import STRICT
from srd.study.studies import Study, Variant
from srd.training.train import train

SELECT_FRACTION = 0.2  # where the configuration holds nothing out itself
SEARCH_SEED = 1000  # of the runs that choose a setting; no reported run has it
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
        chosen: the value of the searched setting.
    """

    seed: int
    selected: float
    last: float
    held_out: float
    best_epoch: int
    effective_rank: float | None
    chosen: float
    seconds: float
    images: int


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
        self.name, self.study, self.shared, self.budget = name, study, shared, budget
        self.base = self.configured({}, name)
        self.output = Path(self.base.output).expanduser() / name

    def configured(self, settings: Mapping[str, Any], name: str, seed: int = 0) -> Config:
        """The configuration of a run."""
        fraction = Layer("the study", nested("data.select_fraction", SELECT_FRACTION))
        own = {"seed": seed, "name": name, "train.keep_best": True, **settings}
        given = [Layer("the study", nested(key, value)) for key, value in own.items()]
        return configure([fraction, *self.shared], [*self.budget.layers, *given], "student")

    def check(self) -> None:
        """Every run's configuration, and that what is there of it was trained with the same.

        Raises:
            UserError: one that cannot be, or a run with other settings.
        """
        for variant in self.study.variants:
            factors = variant.search.factors if self.budget.search else (1.0,)
            for factor in factors:
                for seed in (*self.budget.seeds, SEARCH_SEED):
                    self.planned(variant, factor, seed)

    def all(self) -> Iterator[tuple[Variant, list[Tested]]]:
        """Every variant with its tested runs, as they are done."""
        for variant in self.study.variants:
            factor = self.searched(variant) if self.budget.search else 1.0
            yield variant, [self.test(variant, factor, seed) for seed in self.budget.seeds]

    def searched(self, variant: Variant) -> float:
        """The factor of the variant's searched setting that is best on the held-out images."""
        scores = {
            factor: self.held_out(self.trained(variant, factor, SEARCH_SEED)[1])
            for factor in variant.search.factors
        }
        return max(scores, key=lambda factor: (scores[factor], -abs(factor - 1)))

    def planned(self, variant: Variant, factor: float, seed: int) -> tuple[Config, RunFolder]:
        """A run of a variant, trained or not.

        Raises:
            UserError: it is there with other settings, those of another budget say.
        """
        value = self.searched_value(variant, factor)
        settings = {**variant.settings, variant.search.key: value}
        name = f"{self.name}/{folder_name(variant, factor)}_seed{seed}"
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

    def trained(self, variant: Variant, factor: float, seed: int) -> tuple[Config, RunFolder]:
        """The finished run of a variant."""
        config, folder = self.planned(variant, factor, seed)
        if folder.finished() is None:
            train(config)
        return config, folder

    def searched_value(self, variant: Variant, factor: float) -> float:
        """The searched setting itself."""
        return float(flatten(to_mapping(self.base))[variant.search.key]) * factor

    @staticmethod
    def held_out(folder: RunFolder) -> float:
        """Best top-1 on the held-out images."""
        return float((folder.finished() or {})["best_acc1"])

    def test(self, variant: Variant, factor: float, seed: int) -> Tested:
        """A run's accuracies on the reported images; measured once, then remembered."""
        config, folder = self.trained(variant, factor, seed)
        path = folder.path / TESTED
        if path.is_file():
            return read_tested(path)
        reported = replace(config, data=replace(config.data, select_fraction=None))
        result = folder.finished() or {}
        selected, last = (measured(reported, file) for file in (folder.best, folder.last))
        tested = Tested(
            seed=seed,
            selected=selected.acc1,
            last=last.acc1,
            held_out=self.held_out(folder),
            best_epoch=int(result["best_epoch"]),
            effective_rank=rank_of_projector(folder.last),
            chosen=self.searched_value(variant, factor),
            seconds=float(result["seconds"]),
            images=last.images,
        )
        write_text(path, json.dumps(asdict(tested), indent=2) + "\n")
        return tested


def measured(config: Config, file: Path) -> Any:
    """The accuracy of a checkpoint, without a word."""
    with redirect_stdout(StringIO()):
        return evaluate_checkpoint(config, str(file))


def read_tested(path: Path) -> Tested:
    try:
        values = json.loads(read_small(path, LIMITS.description_bytes))
        return build(Tested, [Layer(str(path), values)])
    except (OSError, ValueError, RecursionError, Refused, UserError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}): remove it, and it is made again") from None


def folder_name(variant: Variant, factor: float) -> str:
    """`layer`, or `layer_x4` where a searched setting is another than the configuration's."""
    plain = re.sub(r"[^a-z0-9]+", "_", variant.label.partition(" (")[0].lower()).strip("_")
    return plain if factor == 1 else f"{plain}_x{factor:g}"


def rank_of_projector(checkpoint: Path) -> float | None:
    """The effective rank of a linear projector; None where there is none."""
    weights = load_file(checkpoint)["model"]
    weight = weights.get("distillation_loss.embed.weight")
    return None if weight is None else effective_rank(singular_values(weight))
