"""Student beside teacher, image by image: kept in the run's folder, and how far they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image
from torch import nn

from srd.data.inputs import Inputs
from srd.device import Precision
from srd.distributed import processes
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy, evaluating, measure_on
from srd.evaluation.predictions import Recorder, thumbnail
from srd.run.folder import RunFolder
from srd.run.log import RunLog
from srd.run.predictions import (
    Predictions,
    Told,
    agreement,
    read_predictions,
    worth_a_look,
    write_predictions,
)

EXAMPLES = 16  # pictures that are kept for a look


@dataclass(frozen=True, kw_only=True)
class ValidationImages:
    """What can be said of the validation images besides what a network says.

    Args:
        name: of an image by its position.
        load: the picture at a position; None where there is no way to it.
    """

    count: int
    class_names: Sequence[str]
    name: Callable[[int], str]
    load: Callable[[int], Image.Image] | None = None

    @classmethod
    def of(cls, inputs: Inputs) -> ValidationImages:
        """Those that a run here is measured on."""
        source = inputs.val_source
        return cls(
            count=len(source),
            class_names=inputs.class_names,
            name=source.name,
            load=lambda index: source.load(index)[0],
        )


class Comparison:
    """What a run's networks say of the validation images; `predictions.json` is the main process's.

    Args:
        anew: the run starts, and what an earlier life left is no longer true.
    """

    def __init__(self, folder: RunFolder, images: ValidationImages, *, anew: bool) -> None:
        self.folder, self.images = folder, images
        self.kept = None if anew or not processes.is_main() else self._left()

    def _left(self) -> Predictions | None:
        try:
            kept = read_predictions(self.folder.predictions)
        except UserError:  # it is made again, as far as it can be
            return None
        same = kept is not None and kept.class_names == list(self.images.class_names)
        return kept if same else None

    @cached_property
    def names(self) -> list[str]:
        return [self.images.name(index) for index in range(self.images.count)]

    def keep(self, *, student: Told | None = None, teacher: Told | None = None) -> float | None:
        """Write down what was said; in percent, how far they agree (None: not known, or not here)."""
        if not processes.is_main():
            return None
        kept = self.kept or Predictions(class_names=[*self.images.class_names], names=self.names)
        kept = replace(kept, student=student or kept.student, teacher=teacher or kept.teacher)
        self.kept = kept = replace(kept, examples={})
        write_predictions(self.folder.predictions, kept)
        if kept.student is None or kept.teacher is None:
            return None
        return agreement(kept.student, kept.teacher)

    def evaluation(
        self, inputs: Inputs, model: nn.Module, precision: Precision, log: RunLog
    ) -> Callable[[Callable[[], bool]], Accuracy]:
        """What a loop calls to have the student measured, and its predictions kept."""

        def evaluate(stop: Callable[[], bool]) -> Accuracy:
            recorder = Recorder(self.images.count, precision.device)
            with evaluating(model):
                accuracy = measure_on(inputs, model, precision, log, "evaluating", stop, recorder)
            return self.compared(accuracy, recorder)

        return evaluate

    def compared(self, accuracy: Accuracy, recorder: Recorder) -> Accuracy:
        """The student's accuracy, and its agreement with the teacher."""
        return replace(accuracy, agreement=self.keep(student=recorder.told()))

    def add_examples(self) -> None:
        """Keep pictures on which the two differ; without a teacher, the surest mistakes."""
        kept, load = self.kept, self.images.load
        if kept is None or kept.student is None or load is None:
            return
        shown = worth_a_look(kept.student, kept.teacher, EXAMPLES).tolist()
        pictures = {index: thumbnail(load, index) for index in shown}
        examples = {index: picture for index, picture in pictures.items() if picture is not None}
        write_predictions(self.folder.predictions, replace(kept, examples=examples))
