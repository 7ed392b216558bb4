"""A run's teacher cache: opened and compared before anything is trained, then between task and teacher."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from srd.cache.manifest import (
    FORMAT,
    Manifest,
    Recorded,
    Shapes,
    check_same,
    path_of,
    read_manifest,
    versions,
    write_manifest,
)
from srd.cache.replay import OpenCache
from srd.config.fields import Config
from srd.config.layers import to_mapping
from srd.data.fingerprint import fingerprint
from srd.data.inputs import Inputs
from srd.device import Precision
from srd.distributed import processes
from srd.errors import UserError
from srd.method.losses import LOSSES
from srd.models.outputs import Representation, of_black_image
from srd.models.recorded import RecordedTeacher
from srd.models.teacher import LoadedTeacher, full_teacher_name, known_sha256

FIELDS = ("features", "logits", "tokens", "maps")  # that a teacher may say
HUB = "hub:"  # before the hash of weights that came from no file


@dataclass(frozen=True, kw_only=True)
class RunCache:
    """The cache that a run names, as far as it is known before the teacher is.

    Args:
        ours: what the run would record; `there`: what the folder holds, None where it is new.
        missing: steps that the run needs, by epoch; `epochs`: how many of them it needs.
        cut: shards that are shorter than they say.
    """

    folder: Path
    ours: Manifest
    there: Manifest | None
    epochs: int
    missing: dict[int, list[int]]
    cut: tuple[Path, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the run needs no teacher."""
        return self.there is not None and not self.missing

    def recorded(self) -> RecordedTeacher:
        """The teacher of a whole cache."""
        assert self.there is not None
        teacher, fields = self.there.teacher, self.there.shapes.fields
        return RecordedTeacher(
            name=teacher.name,
            source=str(self.folder),
            sha256=None if teacher.sha256.startswith(HUB) else teacher.sha256,
            shapes=fields,
            knows_classes=teacher.knows_classes,
            notes=("it is not loaded: every step is replayed",),
        )

    def taught_by(self, teacher: Recorded, fields: Mapping[str, tuple[int, ...]]) -> RunCache:
        """The cache with all that a loaded teacher tells, ready to be written.

        Args:
            fields: the shape of an image's row of each.

        Raises:
            UserError: it is another teacher than the recorded one, or the folder cannot be written.
        """
        shapes = replace(self.ours.shapes, fields=dict(fields))
        ours = replace(self.ours, teacher=teacher, shapes=shapes)
        OpenCache.at(self.folder, ours)  # its settings are checked before anything is written

        def claim() -> Manifest:
            there = self.there
            if there is None or self.missing:
                check_writable(self.folder)
                there = write_manifest(self.folder, ours)
            check_same(self.folder, there, ours)
            return there

        return replace(self, ours=ours, there=processes.from_main(claim))

    def with_teacher(self, teacher: LoadedTeacher, precision: Precision) -> RunCache:
        """`taught_by`, by one of this half's teachers."""
        names = fields_of(self.ours)
        about = Recorded(
            teacher.name,
            teacher.sha256 or weights_hash(teacher.model.model),
            teacher.knows_classes,
        )
        return self.taught_by(about, shapes_of(teacher, names, self.ours, precision))

    def lines(self) -> Iterator[str]:
        """What to tell of it before the first step."""
        assert self.there is not None
        cache = OpenCache.at(self.folder, self.there)
        steps = self.epochs * self.there.shapes.steps
        lacking = sum(map(len, self.missing.values()))
        yield (
            f"teacher cache {self.folder}: {steps - lacking} of {steps} steps are there"
            + (", the others are recorded" if lacking else ", the teacher is not needed")
        )
        if lacking:
            yield f"teacher cache: {cache.size(self.epochs)}"
        if (words := cache.approximation()) is not None:
            yield f"teacher cache: {words}"
        for path in self.cut:
            yield f"warning: {path} is cut short: it is recorded again"


def open_cache(config: Config, inputs: Inputs, precision: Precision) -> RunCache:
    """The cache in `cache.path`, compared with the run as far as that goes without a teacher.

    Raises:
        UserError: as `look_into`.
    """
    assert config.cache.path is not None
    epochs = config.cache.epochs or config.train.epochs
    cache = look_into(config.cache.path, lambda: manifest_of(config, inputs, precision), epochs)
    strange = set(cache.there.shapes.fields) - set(FIELDS) if cache.there else set()
    if strange:
        raise UserError(
            f"the teacher cache {cache.folder} holds {min(strange)!r}, which no teacher here says: name "
            "another --teacher-cache"
        )
    return cache


def look_into(path: str, ours: Callable[[], Manifest], epochs: int) -> RunCache:
    """The cache in a folder, compared with what a run would record.

    Raises:
        UserError: it was recorded otherwise, the folder is no cache, or not all processes see it.
    """
    folder = Path(path).expanduser().absolute()

    def look() -> RunCache:
        own, there = ours(), read_manifest(folder)
        if there is None:
            missing = {epoch: list(range(own.shapes.steps)) for epoch in range(epochs)}
            return RunCache(folder=folder, ours=own, there=None, epochs=epochs, missing=missing)
        check_same(folder, there, own)
        cache = OpenCache.at(folder, there)
        missing, cut = cache.missing(epochs), tuple(sorted(cache.shelf.cut))
        return RunCache(
            folder=folder, ours=own, there=there, epochs=epochs, missing=missing, cut=cut
        )

    cache = processes.from_main(look)
    if blind := processes.ranks_where(cache.there is not None and not folder.is_dir()):
        raise UserError(
            f"process {blind[0]} does not see {folder}: --teacher-cache must be a folder that all "
            "machines share"
        )
    return cache


def manifest_of(config: Config, inputs: Inputs, precision: Precision) -> Manifest:
    """What a run would record, without what only a loaded teacher tells."""
    assert inputs.train is not None and inputs.train_batches is not None
    settings = to_mapping(config)
    augment = {k: v for k, v in settings["augment"].items() if k != "label_smoothing"}
    views: Any = inputs.train.dataset
    recipe = {
        "seed": config.seed,
        "image_size": config.model.image_size,
        "dataset": config.data.dataset,
        "images": inputs.train_images,
        "files": fingerprint(views.source),
        "mean": settings["data"]["mean"],
        "std": settings["data"]["std"],
        "augment": augment,
        **path_of(config.data.pixels),
        "teacher_mean": settings["teacher"]["mean"],
        "teacher_std": settings["teacher"]["std"],
        "precision": str(precision),
    }
    if config.teacher.image_size is not None:  # older caches do not name it
        recipe["teacher_image_size"] = config.teacher.image_size
    if config.teacher.bf16 and precision.mixed != torch.bfloat16:
        recipe["teacher_precision"] = "bfloat16"
    exact: Literal["float32", "float64"] = (
        "float64" if precision.dtype == torch.float64 else "float32"
    )
    reads = LOSSES[config.distill.loss.name].reads
    large: dict[str, tuple[int, ...]] = {}
    if reads in ("tokens", "maps"):
        large[reads] = ()
    return Manifest(
        format=FORMAT,
        teacher=Recorded(
            full_teacher_name(config.teacher.name), known_sha256(config.teacher) or "", True
        ),
        shapes=Shapes(
            fields=large,
            dtype=config.cache.dtype,
            top_logits=config.cache.top_logits,
            exact=exact,
            batch_size=config.train.batch_size,
            steps=len(inputs.train_batches),
        ),
        recipe=recipe,
        versions=versions(config.data.pixels),
    )


def fields_of(ours: Manifest) -> list[str]:
    """What is kept beside the logits: tokens and maps take much more, and only where a loss reads them."""
    return ["features", *ours.shapes.fields]


def shapes_of(
    teacher: LoadedTeacher, names: list[str], ours: Manifest, precision: Precision
) -> dict[str, tuple[int, ...]]:
    """The shape of an image's row of every field that is kept."""
    with precision.autocast():
        output = of_black_image(teacher.model, ours.recipe["image_size"])
    names = [*names, "logits"] if teacher.knows_classes else names
    return {
        name: tuple(value.shape[1:])
        for name in names
        if (value := output.read(cast(Representation, name))) is not None
    }


def weights_hash(network: nn.Module) -> str:
    """Of weights that came from no file."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return HUB + digest.hexdigest()


def check_writable(folder: Path) -> None:
    """Raise a UserError where nothing can be written into a cache that lacks something."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-"):
            pass
    except OSError as error:
        raise UserError(
            f"the teacher cache {folder} lacks steps of this run, and cannot be written "
            f"({error.strerror or error}): name a folder that you can write"
        ) from None


def lacking(cache: RunCache, error: UserError) -> UserError:
    """What to say where a cache lacks something, and there is no teacher."""
    count = sum(map(len, cache.missing.values()))
    first = next(iter(cache.missing))
    return UserError(
        f"the teacher cache {cache.folder} lacks {count} steps (from epoch {first}, step "
        f"{cache.missing[first][0]} on), and the teacher is needed for them: {error}"
    )
