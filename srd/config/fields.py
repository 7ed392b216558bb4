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
from srd.method.losses import LossSettings
from srd.method.simple_recipe import SimpleRecipeSettings
from srd.strict import (
    STRICT,
    Below1,
    Count,
    Fraction,
    Index,
    NonNegative,
    PathText,
    Positive,
    RunName,
    Seed,
)  # fmt: skip

Channels = tuple[float, float, float]
Numbers = Annotated[tuple[float, ...], Field(min_length=1, max_length=4)]  # one a channel
Positives = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=4)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
ImageSize = Annotated[int, Field(ge=8, le=8192)]  # what else a model asks for, it says itself

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


@dataclass(config=STRICT)
class Model:
    """The student (or, with --train_teacher, the image size of the teacher)."""

    name: str = "tiny"  # tiny, small, base, or any timm model
    image_size: ImageSize = 224
    in_chans: Literal[1, 3, 4] = 3  # of the pictures: greys, colours, colours and opacity
    drop_path: Fraction = 0.0
    freeze_backbone: bool = False  # only the head learns: a linear probe
    init: PathText | None = (
        None  # weights to start from: pretrained, a timm tag, a file, a run, hf-hub:
    )


@dataclass(config=STRICT)
class Data:
    dataset: str = (
        "imagefolder"  # or digits, cifar10, datasets (Hugging Face's), a registered source
    )
    path: PathText | None = None  # the folder with train/ and val/; of datasets also a Hub name
    val_fraction: OpenFraction | None = None  # held out where there is no val/; None: a tenth
    select_fraction: OpenFraction | None = None  # measured on instead of val/; out of train/
    unlabelled: bool = False  # pictures without classes, or whose classes are left unread
    image_column: str | None = None  # of datasets, where its types do not tell
    label_column: str | None = None
    exif_orientation: bool | None = None  # turn pictures upright; None: all but ImageNet's
    images_per_class: Count | None = None  # train on the first n images of each class
    pixels: Literal["released", "fast", "device"] = "released"  # how views for training are made
    workers: Index = 8  # loader processes for each training process, at most one a core
    mean: Numbers = IMAGENET_MEAN  # as many as model.in_chans, whose usual ones take their place
    std: Positives = IMAGENET_STD
    skip_broken: bool = False  # replace files that cannot be read instead of stopping
    eval_crop: Annotated[float, Field(ge=0.1, le=1)] = 0.875  # resize to image_size / eval_crop
    eval_interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    eval_batch_size: Count = 256

    @property
    def mode(self) -> str:
        """Pillow's name of what pictures are read as."""
        return MODES.get(len(self.mean), "RGB")


@dataclass(config=STRICT)
class Augment:
    """timm's training transform and mixup. An empty `rand_augment` turns it off."""

    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: Literal["nearest", "bilinear", "bicubic", "random"] = "bicubic"
    crop_padding: Index | None = None  # CIFAR's crop: of the image with so many black pixels around
    flip: Fraction = 0.5
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: NonNegative = 0.4  # used only without rand_augment, as in timm
    erase: Fraction = 0.25
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    erase_count: Annotated[int, Field(ge=1, le=1000)] = 1
    mixup: NonNegative = 0.8
    cutmix: NonNegative = 1.0
    mix_probability: Fraction = 1.0
    mix_switch: Fraction = 0.5  # of cutmix when both are on
    label_smoothing: Below1 = 0.1


@dataclass(config=STRICT)
class Optim:
    """Optimizer and schedule; the learning rates are for `lr_batch` images and scale with the batch.

    What the optimizer or the schedule does not read is refused; None leaves it to the optimizer.
    """

    name: str = "adamw"  # timm's names: adamw, sgd (Nesterov), momentum (SGD without), lamb, ...
    lr: Positive = 5e-4
    lr_batch: Count = 512
    weight_decay: NonNegative = 0.05
    betas: tuple[Below1, Below1] | None = None  # adamw: (0.9, 0.999), the paper's
    eps: Positive | None = None  # adamw: 1e-8, the paper's
    momentum: Below1 | None = None  # sgd, momentum: 0.9
    decay_all: bool = False  # decay biases and 1-d parameters too, as torchdistill's recipes do
    clip_norm: Positive | None = 15.0
    schedule: Literal["cosine", "step"] = "cosine"
    decay_epochs: tuple[Count, ...] | None = None  # step: after these, the rate is multiplied ...
    decay_rate: Fraction | None = None  # ... by this
    warmup_epochs: NonNegative = 20
    warmup_lr: NonNegative = 5e-7
    warmup_prefix: bool = False  # start the schedule after the warm-up instead of under it
    min_lr: NonNegative = 5e-6  # where the cosine ends


@dataclass(config=STRICT)
class Teacher:
    """A timm model. Without `checkpoint`: the paper's file in ckpts/, else timm's Hub weights."""

    name: str = "regnety_160.deit_in1k"
    checkpoint: PathText | None = None
    recipe: PathText | None = None  # without `checkpoint`: a YAML file that trains it first, once
    image_size: ImageSize | None = None  # to which its images are resized; None: as the student's
    mean: Channels | None = None  # of the images it expects; None: as its run or timm says
    std: tuple[Positive, Positive, Positive] | None = None
    bf16: bool = False  # computes in bfloat16 where `amp` does not: faster on some CPUs, other bits
    evaluate: bool | None = None  # before training; None: on 2,000 validation images, True: on all


@dataclass(config=STRICT)
class Distill:
    """ce_weight * CE + kl_weight * KL to the teacher's logits + repr_weight * the named loss.

    What a loss does not have (`none` no KL, `kd` no representation) cannot be weighed.
    """

    loss: LossSettings = field(default_factory=SimpleRecipeSettings)  # by name: docs/settings.md
    temperature: Positive = 1.0
    ce_weight: NonNegative = 1.0
    kl_weight: NonNegative = 1.0
    repr_weight: NonNegative = 1.0


@dataclass(config=STRICT)
class Saving:
    """What a run measures and leaves on the way; epochs and steps between, 0 for never."""

    evaluate_every: Index = 1  # epochs; the last is always measured
    save_every: Count = 1  # epochs between checkpoints; the last epoch always leaves one
    save_every_steps: Index = 0
    keep_last: Count = 2  # checkpoints: last.pth, and last.1.pth, ... before it
    keep_every: Index = 0  # also keep epoch_NNNN.pth every n epochs
    keep_best: bool = True  # also keep best.pth
    log_every: Count = 10  # steps between lines in metrics.jsonl


@dataclass(config=STRICT)
class Plan(Saving):
    """How long a run is besides."""

    batch_size: Count = 256  # the effective one, over all processes
    epochs: Count = 300
    ema_decay: OpenFraction | None = None  # of a moving average of the student; None: no average
    ema_warmup: bool = False  # the decay rises to it, for runs of a few thousand updates


@dataclass(config=STRICT)
class Train(Plan):
    micro_batch: Count | None = None  # images a process holds at once; None: all of its share
    global_statistics: bool = True  # of the whole batch; off: of shares (docs/distributed.md)


@dataclass(config=STRICT)
class Cache:
    """What the teacher said, kept for the next run (docs/cache.md)."""

    path: PathText | None = None  # a folder; what is not there is recorded
    dtype: Literal["float32", "float16", "int8"] = "float16"  # float32 is exact
    top_logits: Count | None = None  # keep the largest k of each image; None: all
    epochs: Count | None = None  # views, order and mixes repeat after so many; None: never


@dataclass(config=STRICT)
class Config:
    preset: Literal["small", "imagenet"] | None = None  # None: small for few pictures of one's own
    seed: Seed = 0
    output: PathText = "runs"
    name: RunName | None = None  # of the run's folder; None: the model's
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Amp = "auto"
    compile: bool | None = None  # None: on a GPU, the teacher of a long run
    deterministic: bool = False  # the same bits on a GPU too, at a cost in speed
    resume: PathText = "auto"
    extend: bool = False  # go on with a run under other settings
    slim: bool = False  # when it is done, keep what others need, and no checkpoints
    track: str | None = None  # wandb, mlflow or trackio: the run is sent there
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    teacher: Teacher = field(default_factory=Teacher)
    distill: Distill = field(default_factory=Distill)
    cache: Cache = field(default_factory=Cache)
    train: Train = field(default_factory=Train)


# Settings of the machine and of the telling, not of the recipe: a run may go on with other values.
NOT_RECIPE = (
    "preset",  # what it stands for is compared
    "output",
    "name",
    "device",
    "compile",
    "resume",
    "extend",
    "slim",
    "track",
    "data.path",
    "data.workers",
    "data.skip_broken",
    "data.eval_batch_size",
    "teacher.evaluate",
    "teacher.checkpoint",
    "teacher.recipe",
    "cache.path",
    "train.evaluate_every",
    "train.save_every",
    "train.keep_last",
    "train.keep_every",
    "train.keep_best",
    "train.log_every",
)
assert all(any(key.startswith(skip) for key in dotted_keys(Config)) for skip in NOT_RECIPE)


def default_name(config: Config, trained: Literal["student", "teacher"]) -> str:
    """Of a run's folder: what is trained and how, and on the digits says so."""
    student = f"{full_name(config.model.name)}_{config.distill.loss.name}"
    data = "digits_" if config.data.dataset == "digits" else ""
    return data + (f"teacher_{config.teacher.name}" if trained == "teacher" else student)


def full_name(model: str) -> str:
    """What to call a student: the paper's sizes are DeiTs, other names are timm's."""
    return f"deit_{model}" if model in ("tiny", "small", "base") else model
