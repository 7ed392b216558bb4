"""Whether a cache holds what its teacher says: some of its steps computed again."""

from __future__ import annotations

from srd.cache.reader import Reader
from srd.cache.replay import OpenCache
from srd.cache.shards import Damaged
from srd.config.fields import Config
from srd.distributed import processes
from srd.errors import UserError
from srd.training.cached_teacher import as_values
from srd.training.fill import open_filler

TOLERANCE = 0.02  # of the largest value: other devices and batches sum in another order


def compare(config: Config, sample: int) -> str:
    """Compute `sample` steps, spread evenly over those that are there; the largest difference.

    Raises:
        UserError: a value differs by more than rounding explains, or nothing is there.
    """
    filler, run, precision = open_filler(config)
    if run.there is None:
        raise UserError(f"there is no teacher cache in {run.folder}")
    run = run.with_teacher(filler.teacher, precision)
    assert run.there is not None and processes.world_size() == 1
    cache = OpenCache.at(run.folder, run.there)
    there = [
        (epoch, step)
        for epoch in range(run.epochs)
        for step in range(run.there.shapes.steps)
        if step not in run.missing.get(epoch, ())
    ]
    if not there or sample < 1:
        raise UserError(f"{run.folder} holds nothing that could be computed again")
    chosen = there[:: -(-len(there) // sample)]
    reader, largest, relative = Reader(cache.shelf, 0, 1), 0.0, 0.0
    try:
        for epoch, step in chosen:
            ((_, _, output),) = filler.outputs(epoch, [step])
            values = as_values(output, cache.codec.fields)
            live = cache.codec.decode(cache.codec.encode(values))
            stored = reader.get((epoch, step))
            assert stored is not None
            kept = {name: value.to(precision.device) for name, value in stored.items()}
            for name, value in cache.codec.decode(kept).items():
                difference = (value - live[name]).abs().max().item()
                largest = max(largest, difference)
                relative = max(relative, difference / max(1e-12, live[name].abs().max().item()))
    except Damaged as damage:
        raise UserError(str(damage)) from None
    finally:
        reader.close()
    words = f"{len(chosen)} steps computed again: the largest difference is {largest:.3g}"
    if relative > TOLERANCE:
        raise UserError(f"{run.folder}: {words}, {100 * relative:.3g} % of the largest value")
    return f"{run.folder}: {words}" + (", the same bits" if largest == 0 else "")
