"""The sections of a torchdistill file: which keys there are, and what may stand there.

They are checked by the same `srd.config.layers.build` as the other half's settings. What only
torchdistill or torch reads, such as the arguments of an optimizer, they check themselves when the box
is built and rehearsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import Strict, StrictBool
from pydantic.dataclasses import dataclass

from srd.config.checks import check_batch_size
from srd.config.layers import Layer, build
from srd.errors import UserError
from srd.strict import MOST_COUNT, STRICT, PathText
from srd.strict import Count as AnyCount
from srd.strict import Index as AnyIndex
from srd.strict import Positive as AnyPositive

Open = dict[str, Any]
# Numbers, and no texts of them: torchdistill reads the file as it is.
Count = Annotated[AnyCount, Strict()]
Index = Annotated[AnyIndex, Strict()]
Positive = Annotated[AnyPositive, Strict()]


@dataclass(config=STRICT)
class LoaderSettings:
    """Arguments of torch's DataLoader; ours, which takes its place, reads the first two."""

    batch_size: Count
    num_workers: Index = 0
    pin_memory: Any = None
    drop_last: Any = None
    timeout: Any = None
    prefetch_factor: Any = None
    persistent_workers: Any = None
    shuffle: Any = None


@dataclass(config=STRICT)
class Loader:
    """A data loader."""

    dataset_id: Any
    kwargs: LoaderSettings
    sampler: Open = field(default_factory=dict)
    collate_fn: Any = None
    dataset_wrapper: Open | None = None
    requires_supp: StrictBool = False
    random_sample: Any = None  # of earlier versions of torchdistill, and without effect
    cache_output: None = None
    batch_sampler: None = None  # batches are ours


@dataclass(config=STRICT)
class Network:
    """A model, and where its weights come from and go."""

    key: str
    kwargs: Open | None = None
    src_ckpt: PathText | None = None
    dst_ckpt: PathText | None = None
    quantized: StrictBool = False
    sync_bn: StrictBool = False
    repo_or_dir: None = None
    experiment: Any = None


@dataclass(config=STRICT)
class Networks:
    """The section `models`."""

    student_model: Network | None = None
    model: Network | None = None
    teacher_model: Network | None = None


@dataclass(config=STRICT)
class Registered:
    """Something of torchdistill's registries."""

    key: str
    kwargs: Open = field(default_factory=dict)
    scheduling_step: Index | None = None
    max_grad_norm: Positive | None = None
    grad_accum_step: Count = 1
    filters_params: StrictBool = True
    module_wise_kwargs: Any = None
    module_wise_configs: Any = None
    func2extract_model_loss: Any = None


@dataclass(config=STRICT)
class Training:
    """The section `train`."""

    num_epochs: Count
    train_data_loader: Loader
    val_data_loader: Loader
    criterion: Registered
    optimizer: Registered
    scheduler: Registered | None = None
    teacher: Open | None = None
    student: Open | None = None
    model: Open | None = None
    log_freq: Any = None
    pre_epoch_process: Any = None
    post_epoch_process: Any = None
    pre_forward_process: Any = None
    post_forward_process: Any = None


@dataclass(config=STRICT)
class Testing:
    """The section `test`."""

    test_data_loader: Loader
    log_freq: Any = None


@dataclass(config=STRICT)
class Sections:
    """A torchdistill file, without what `resnet.recipe` reads itself."""

    datasets: Open
    models: Networks
    train: Training
    test: Testing


def stages(train: Any) -> list[Any]:
    """The stages of a `train` section, in order, each with what it takes over from the one before.

    Without `stage1`, the section itself is the only one. What stands beside stages is `log_freq` alone.

    Raises:
        UserError: something else, or a stage that follows no other.
    """
    if not isinstance(train, Mapping) or "stage1" not in train:
        return [train]
    merged: Any = {}
    several: list[Any] = []
    rest = {key: value for key, value in train.items() if key != "log_freq"}
    while (stage := rest.pop(f"stage{len(several) + 1}", None)) is not None:
        merged = {**merged, **stage} if isinstance(stage, Mapping) else stage
        several.append(merged)
        if not isinstance(stage, Mapping):
            break
    if rest:
        raise UserError(f"train.{next(iter(rest))} stands beside stage1: put it into the stages")
    return several


def check_sections(config: Mapping[str, Any], source: str) -> list[Training]:
    """The stages of a built configuration's training, checked; most have one.

    Args:
        source: its file, for messages.

    Raises:
        UserError: a section or a key that is missing, unknown, or of another kind or range; a data
            set that is none; a batch of one.
    """
    names = ("datasets", "models", "train", "test")
    values = {name: _without_notes(config.get(name)) for name in names}
    several = stages(values["train"])
    return [
        _check_stage({**values, "train": stage}, source, f"stage{number}." if several[1:] else "")
        for number, stage in enumerate(several, start=1)
    ]


def _check_stage(values: dict[str, Any], source: str, stage: str) -> Training:
    sections = build(Sections, [Layer(f"{source}, {stage[:-1]}" if stage else source, values)])
    place = f"train.{stage}"
    check_finite(values["train"], place.rstrip("."), source)
    train, test = sections.train, sections.test
    check_batch_size(
        f"{place}train_data_loader.kwargs.batch_size", train.train_data_loader.kwargs.batch_size
    )
    for name, loader in (
        (f"{place}train_data_loader", train.train_data_loader),
        (f"{place}val_data_loader", train.val_data_loader),
        ("test.test_data_loader", test.test_data_loader),
    ):
        check_dataset(name, loader.dataset_id, sections.datasets)
    return train


def _without_notes(value: Any) -> Any:
    """`value` without keys that begin with `_`: published files keep anchors and remarks there."""
    if isinstance(value, Mapping):
        return {
            key: _without_notes(item) for key, item in value.items() if not str(key).startswith("_")
        }
    return value


def check_finite(value: Any, name: str, source: str) -> None:
    """Raise a UserError for a number in a section that is none (`.nan`), or beyond all that is meant."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_finite(item, f"{name}.{key}", source)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_finite(item, name, source)
    elif isinstance(value, (int, float)) and not abs(value) <= MOST_COUNT:
        shown = str(value)[:40]
        raise UserError(f"{name} in {source} should be a finite number of usual size, not {shown}")


def check_dataset(place: str, name: Any, datasets: Mapping[str, Any]) -> None:
    """Raise a UserError unless `datasets` has a data set with random access by that name."""
    known = ", ".join(map(str, datasets)) or "none"
    if not isinstance(name, str) or name not in datasets:
        raise UserError(
            f"{place}.dataset_id: no data set {name!r} under datasets; there are {known}"
        )
    kind = type(datasets[name])
    if not (hasattr(kind, "__getitem__") and hasattr(kind, "__len__")) or kind in (str, dict, list):
        raise UserError(f"datasets.{name} is no data set with random access, but a {kind.__name__}")
