"""A teacher behind its cache: loaded, called and recorded only where there is no record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor

from srd.cache.replay import OpenCache, Replay
from srd.config.fields import Config
from srd.data.inputs import Inputs
from srd.device import Precision
from srd.models.frozen import Normalization
from srd.models.outputs import Output, Representation
from srd.models.teacher import LoadedTeacher, open_teacher
from srd.training.arrange import arrange_teacher
from srd.training.micro_batches import in_parts
from srd.training.run_cache import RunCache
from srd.training.task import DistillationTask, Teach

At = Callable[[int], object]  # the place of a batch: whole epochs, and steps of the one under way


def load_teacher(config: Config, num_classes: int, precision: Precision) -> LoadedTeacher:
    """The configured teacher, on its device."""
    return open_teacher(
        config.teacher,
        num_classes=num_classes,
        image_size=config.model.image_size,
        given=Normalization(config.data.mean, config.data.std),
        precision=precision,
    )


def as_output(values: dict[str, Tensor], images: Tensor) -> Output:
    """What was kept, as a teacher says it; without logits where it knows other classes."""
    logits = values.get("logits", images.new_empty(len(images), 0))
    kept = {name: values.get(name) for name in ("features", "tokens", "maps")}
    return Output(logits=logits, **kept)


def as_values(output: Output, fields: Iterable[str]) -> dict[str, Tensor]:
    """The fields that are kept of what a teacher says."""
    values = {name: output.read(cast(Representation, name)) for name in fields}
    return {name: value for name, value in values.items() if value is not None}


class CachedTeacher:
    """Teaches out of a replay, and where that has nothing, by a teacher that is loaded when needed.

    Images that belong to no batch of the training, such as those of an evaluation, are the teacher's.

    Args:
        teach: the loaded teacher; None: `load` makes one where it is needed after all.
    """

    def __init__(
        self, cache: OpenCache, teach: Teach | None, load: Callable[[], Teach], replay: Replay
    ) -> None:
        self.fields, self.teach, self.load = list(cache.codec.fields), teach, load
        self.replay, self.expected = replay, False

    def at(self, place: int) -> None:
        """The images that come next are those of the batch at this place."""
        self.replay.at(place)
        self.expected = True

    def ready(self) -> Teach:
        """The teacher, loaded."""
        if self.teach is None:
            self.teach = self.load()
        return self.teach

    def __call__(self, images: Tensor) -> Output:
        if not self.expected:
            return self.ready()(images)
        self.expected = False

        def compute() -> dict[str, Tensor]:
            return as_values(self.ready()(images), self.fields)

        return as_output(self.replay.values(images, compute), images)


@contextmanager
def teaching(
    task: DistillationTask,
    run: RunCache | None,
    config: Config,
    inputs: Inputs,
    precision: Precision,
    tell: Callable[[str], object],
) -> Iterator[At]:
    """The task's teacher behind the run's cache, where there is one.

    Args:
        tell: a line for people.

    Yields:
        What is to be called with the place of every batch before it is taught.
    """
    if run is None:
        yield lambda place: None
        return

    def load() -> Teach:
        teacher = load_teacher(config, inputs.num_classes, precision)
        batches = config.train.epochs * cache.shelf.layout.steps
        arrange_teacher(teacher, config, precision, batches=batches)
        micro_batch = config.train.micro_batch
        return teacher if micro_batch is None else in_parts(teacher, micro_batch)

    for line in run.lines():
        tell(line)
    assert run.there is not None
    cache = OpenCache.at(run.folder, run.there)
    replay = Replay(
        cache,
        repeat=config.cache.epochs,
        device=precision.device,
        load=lambda: teacher.ready(),
        tell=tell,
    )
    teacher = CachedTeacher(cache, task.teach, load, replay)
    task.hold(teacher)
    try:
        yield teacher.at
    finally:
        replay.close()
