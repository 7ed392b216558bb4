"""Everything that one can set, with the paper's values as defaults.

Where to change the data path, the output folder, or anything else: the defaults below, a YAML
file (`--config`), a flag (`--data-path`, `--output`, ...), or `--set section.key=value`; the later
wins. `docs/fidelity.md` says where each default comes from.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from srd.config.layers import Amp, dotted_keys
from srd.errors import UserError
from srd.strict import STRICT, Below1, Count, Fraction, Index, NonNegative, Positive

Channels = tuple[float, float, float]
ImageSize = Annotated[int, Field(ge=16, multiple_of=16)]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


@dataclass(config=STRICT)
class Model:
    """The student (or, with --train_teacher, the image size of the teacher)."""

    name: Literal["tiny", "small", "base"] = "tiny"
    image_size: ImageSize = 224
    drop_path: Fraction = 0.0


@dataclass(config=STRICT)
class Data:
    dataset: Literal["imagefolder", "digits"] = "imagefolder"
    path: str | None = None  # the folder with train/ and val/
    images_per_class: Count | None = None  # train on the first n images of each class
    workers: Index = 8  # loader processes for each training process, at most one a core
    mean: Channels = IMAGENET_MEAN
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    skip_broken: bool = False  # replace files that cannot be read instead of stopping
    eval_crop: Annotated[float, Field(gt=0, le=1)] = 0.875  # resize to image_size / eval_crop
    eval_interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    eval_batch_size: Count = 256


@dataclass(config=STRICT)
class Augment:
    """timm's training transform and mixup. An empty `rand_augment` turns it off."""

    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: Literal["nearest", "bilinear", "bicubic", "random"] = "bicubic"
    flip: Fraction = 0.5
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: NonNegative = 0.4  # used only without rand_augment, as in timm
    erase: Fraction = 0.25
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    erase_count: Count = 1
    mixup: NonNegative = 0.8
    cutmix: NonNegative = 1.0
    mix_probability: Fraction = 1.0
    mix_switch: Fraction = 0.5  # of cutmix when both are on
    label_smoothing: Below1 = 0.1


@dataclass(config=STRICT)
class Optim:
    """AdamW; the learning rates are for `lr_batch` images and scale with the batch size."""

    lr: Positive = 5e-4
    lr_batch: Count = 512
    weight_decay: NonNegative = 0.05
    betas: tuple[Below1, Below1] = (0.9, 0.999)
    eps: Positive = 1e-8
    clip_norm: Positive | None = 15.0
    warmup_epochs: NonNegative = 20
    warmup_lr: NonNegative = 5e-7
    min_lr: NonNegative = 5e-6
    warmup_prefix: bool = False  # start the cosine after the warm-up instead of under it


@dataclass(config=STRICT)
class Teacher:
    """A timm model. Without `checkpoint`: the paper's file in ckpts/, else timm's Hub weights."""

    name: str = "regnety_160.deit_in1k"
    checkpoint: str | None = None
    recipe: str | None = None  # without `checkpoint`: a YAML file that trains it first, once
    mean: Channels | None = None  # of the images it expects; None: as its run or timm says
    std: tuple[Positive, Positive, Positive] | None = None
    evaluate: bool = False  # measure it on the validation images before training


@dataclass(config=STRICT)
class Distill:
    """`srd`: the paper; `kd`: Hinton's, on logits; `none`: the student alone."""

    method: Literal["srd", "kd", "none"] = "srd"
    match: Literal["correlation", "elementwise"] = "correlation"
    alpha: Annotated[float, Field(ge=1)] = 4.0
    bn_eps: NonNegative | None = None  # None: the released value for `match`
    log_eps: NonNegative | None = None
    temperature: Positive = 1.0
    ce_weight: NonNegative = 1.0
    kl_weight: NonNegative = 1.0
    repr_weight: NonNegative = 1.0


@dataclass(config=STRICT)
class Train:
    batch_size: Count = 256  # the effective one, over all processes
    micro_batch: Count | None = None  # images a process holds at once; None: all of its share
    global_statistics: bool = (
        True  # of the whole batch; off: each process's share (docs/distributed.md)
    )
    epochs: Count = 300
    evaluate_every: Index = 1  # epochs; 0: only after the last
    save_every: Count = 1  # epochs between checkpoints; the last epoch always leaves one
    save_every_steps: Index = 0  # also every n steps; 0: not
    keep_last: Count = 2  # checkpoints: last.pth, and last.1.pth, ... before it
    keep_every: Index = 0  # also keep epoch_NNNN.pth every n epochs; 0: none
    keep_best: bool = True  # also keep best.pth
    log_every: Count = 10  # steps between lines in metrics.jsonl


@dataclass(config=STRICT)
class Config:
    seed: Index = 0
    output: str = "runs"
    name: Annotated[str, Field(min_length=1)] | None = (
        None  # of the run's folder; None: the model's
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Amp = "auto"
    compile: bool = False
    deterministic: bool = False  # the same bits on a GPU too, at a cost in speed
    resume: str = "auto"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    teacher: Teacher = field(default_factory=Teacher)
    distill: Distill = field(default_factory=Distill)
    train: Train = field(default_factory=Train)


# Settings of the machine and of the telling, not of the recipe: a run may go on with other values.
NOT_RECIPE = (
    "output",
    "name",
    "device",
    "compile",
    "resume",
    "data.path",
    "data.workers",
    "data.eval_batch_size",
    "teacher.evaluate",
    "teacher.checkpoint",
    "teacher.recipe",
    "train.evaluate_every",
    "train.save_every",
    "train.keep_last",
    "train.keep_every",
    "train.keep_best",
    "train.log_every",
)
assert all(any(key.startswith(skip) for key in dotted_keys(Config)) for skip in NOT_RECIPE)


def check(config: Config) -> None:
    """Raise a UserError for values that do not go together."""
    mixing = config.augment.mixup > 0 or config.augment.cutmix > 0
    if mixing and config.train.batch_size % 2:
        raise UserError(
            f"train.batch_size {config.train.batch_size} is odd: mixup and cutmix pair the images "
            f"of a batch; use {config.train.batch_size + 1}, or set augment.mixup and augment.cutmix to 0"
        )
    if config.train.batch_size < 2:
        raise UserError("train.batch_size 1 has no batch statistics: use at least 2")
    for key in ("crop_scale", "crop_ratio"):
        low, high = getattr(config.augment, key)
        if low > high:
            raise UserError(f"augment.{key} ({low}, {high}): the first must not exceed the second")
