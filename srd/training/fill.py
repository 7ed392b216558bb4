"""Fill a teacher cache without a student: here, in several processes, or as independent parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Sampler

from srd.cache.recorder import Recorder
from srd.cache.replay import VIEW, OpenCache, of_view
from srd.config.fields import Config
from srd.data.augment import Mix
from srd.data.batches import TrainBatches
from srd.data.inputs import Inputs, inputs_of
from srd.data.loader import make_loader, to_device
from srd.device import Precision, choose_device, set_determinism
from srd.distributed import processes
from srd.errors import UserError
from srd.models.teacher import LoadedTeacher
from srd.run.log import RunLog
from srd.training.arrange import arrange_teacher
from srd.training.cached_teacher import as_values, load_teacher
from srd.training.micro_batches import in_parts
from srd.training.run_cache import RunCache, open_cache
from srd.training.teaching import check_teacher, with_known_teacher
from srd.training.without_labels import open_unlabelled_teacher


class Share(NamedTuple):
    """Of the work: part `number` (from 0) of `of` parts."""

    number: int = 0
    of: int = 1


class Steps(Sampler[list[tuple[int, int]]]):
    """Whole global batches of chosen steps of an epoch."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches = batches
        self.epoch, self.steps = 0, [0]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, size = self.batches.order(self.epoch), self.batches.batch_size
        for step in self.steps:
            yield [(self.epoch, i) for i in order[step * size : (step + 1) * size].tolist()]


class Filler:
    """What computes and records the steps of a cache.

    Args:
        config: its loss says whether tokens are kept.
    """

    def __init__(
        self, config: Config, inputs: Inputs, teacher: LoadedTeacher, precision: Precision
    ) -> None:
        assert inputs.train is not None and inputs.train_batches is not None
        self.teacher, self.precision = teacher, precision
        size = config.train.micro_batch
        self.teach = teacher if size is None else in_parts(teacher, size)
        self.broken = inputs.broken
        self.steps = Steps(inputs.train_batches)
        classes = max(1, inputs.num_classes)
        self.mix = Mix(config.augment, num_classes=classes, seed=config.seed)
        cuda = precision.device.type == "cuda"
        self.loader = make_loader(
            inputs.train.dataset, self.steps, config.data.workers, cuda, inputs.train.collate_fn
        )

    def outputs(self, epoch: int, steps: list[int]) -> Iterator[tuple[int, Tensor, Any]]:
        """(step, images (B, 3, H, W), what the teacher says of them) of whole global batches."""
        self.steps.epoch, self.steps.steps = epoch, steps
        per_epoch = len(self.steps.batches)
        for step, batch in zip(steps, self.loader, strict=True):
            self.broken.check(batch)
            inputs = to_device(batch, self.precision.device, self.precision.dtype)
            images, _ = self.mix(*inputs, epoch * per_epoch + step)
            with self.precision.autocast():
                yield step, images, self.teach(images)


def open_filler(config: Config) -> tuple[Filler, RunCache, Precision]:
    """The images, the teacher and the cache of a configuration, compared with each other.

    Raises:
        UserError: as a training would.
    """
    if config.cache.path is None:
        raise UserError("no cache: say which with --teacher-cache DIR")
    device = choose_device(config.device)
    precision = Precision.choose(config.amp, device)
    set_determinism(config.deterministic)
    inputs = inputs_of(config, training=True, pin_memory=device.type == "cuda")
    config = with_known_teacher(config)
    cache = open_cache(config, inputs, precision)
    if config.data.unlabelled:
        teacher, _ = open_unlabelled_teacher(config, config.distill, precision)
    else:
        teacher = load_teacher(config, inputs.num_classes, precision)
        check_teacher(teacher, config.distill, inputs.class_names)
    assert inputs.train_batches is not None
    batches = cache.epochs * len(inputs.train_batches)
    arrange_teacher(teacher, config, precision, batches=batches)
    return Filler(config, inputs, teacher, precision), cache, precision


def fill(config: Config, part: Share | None = None) -> None:
    """Record what a cache lacks, or a part of that.

    Parts need nothing of each other. Whoever is started again goes on where it was; several at work
    at once on the same part leave each other's shards alone.

    Args:
        part: None: all of it, shared out where torchrun started several processes.

    Raises:
        UserError: as a training would. RunFailed: it cannot be written.
    """
    device = choose_device(config.device)
    with processes.joined(device):
        share = part or Share(processes.rank(), processes.world_size())
        log = RunLog(None, processes.is_main())
        filler, cache, precision = open_filler(config)
        if cache.is_whole:
            log.info(f"nothing to do: {cache.folder} has all {cache.epochs} epochs")
            return
        cache = cache.with_teacher(filler.teacher, precision)
        log.lines(cache.lines())
        assert cache.there is not None
        opened = OpenCache.at(cache.folder, cache.there)
        work = list(_chunks(opened, cache.missing, share))
        recorder = Recorder(opened.shelf, 0, 1)
        try:
            with log.bar("filling the teacher cache", sum(len(s) for _, s in work)) as bar:
                for epoch, steps in work:
                    if recorder.take(epoch, steps[0]):
                        left = set(opened.shelf.missing(epoch)) & set(steps)
                        for step, images, output in filler.outputs(epoch, sorted(left)):
                            values = as_values(output, opened.codec.fields)
                            columns = {**opened.codec.encode(values), VIEW: of_view(images)}
                            recorder.put(epoch, step, columns)
                            bar.advance(1, {"epoch": str(epoch)})
                            if recorder.failure is not None:
                                raise recorder.failure
        finally:
            recorder.close()
        if recorder.failure is not None:
            raise recorder.failure
        processes.barrier()
        lacking = sum(map(len, opened.missing(cache.epochs).values()))
        rest = (
            f"{lacking} steps are still missing: other parts record them"
            if lacking
            else "all there"
        )
        log.info(f"{cache.folder}: {rest}")


def _chunks(
    cache: OpenCache, missing: dict[int, list[int]], share: Share
) -> Iterator[tuple[int, list[int]]]:
    """(epoch, steps that are missing) of every shard of a share of the work."""
    layout = cache.shelf.layout
    for epoch, steps in missing.items():
        for chunk in layout.chunks():
            own = [step for step in steps if layout.chunk(step) == chunk]
            if own and (epoch * len(layout.chunks()) + chunk) % share.of == share.number:
                yield epoch, own
