"""Pictures of torchvision's folders, read by our list of formats and within our limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Subset
from torchvision import transforms
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import default_loader

from resnet.sections import stages
from srd.data.encoded import Encoded, of_file
from srd.data.fast_views import Normalised, check_installed, fast_steps
from srd.data.image_source import read_image
from srd.errors import UserError


def read_by_list(dataset: Any) -> None:
    """Give a folder of pictures our reader in the place of torchvision's, which opens anything.

    The pixels are the same. A data set may be wrapped, by torchdistill or as a part of another.
    """
    inner = _innermost(dataset)
    if isinstance(inner, DatasetFolder) and inner.loader is default_loader:
        inner.loader = open_picture


def open_picture(path: str) -> Image.Image:
    """In RGB; raises as `read_image`."""
    return read_image(path)


def use_fast_pixels(config: Mapping[str, Any]) -> None:
    """Give the folders that a recipe trains on the fast path (`run.pixels: fast`).

    Raises:
        UserError: what it needs is not installed, or a data set has no transforms for it.
    """
    check_installed()
    measured = _loaded(config["train"], "val_data_loader") | _loaded(
        config["test"], "test_data_loader"
    )
    for name in _loaded(config["train"], "train_data_loader"):
        if name in measured:
            raise UserError(f"run.pixels: fast is for training, and {name} is measured on too")
        inner = _innermost(config["datasets"].get(name))
        if isinstance(inner, DatasetFolder) and isinstance(inner.transform, Fast):
            continue  # of a stage before
        if not isinstance(inner, DatasetFolder) or inner.loader is not open_picture:
            raise UserError(f"run.pixels: fast reads torchvision's ImageFolder, and {name} is none")
        inner.transform, inner.loader = Fast(inner.transform, str(name)), open_encoded


def _loaded(section: Any, loader: str) -> dict[str, None]:
    """The names of the data sets that a loader reads, of all stages."""
    named = (stage.get(loader) for stage in stages(section) if isinstance(stage, Mapping))
    return {str(one.get("dataset_id")): None for one in named if isinstance(one, Mapping)}


def open_encoded(path: str) -> Encoded:
    """The file, not decoded yet; an OSError where it cannot be read."""
    return of_file(path, turn=False)


class Fast:
    """A recipe's transforms on the fast path, up to the normalised tensor; what follows is as it is.

    Raises:
        UserError: they do not begin with RandomResizedCrop, or have no ToTensor.
    """

    def __init__(self, transform: Any, name: str) -> None:
        steps = list(transform.transforms) if type(transform) is transforms.Compose else []
        if not steps or type(steps[0]) is not transforms.RandomResizedCrop:
            raise UserError(
                f"run.pixels: fast needs transforms of {name} that begin with RandomResizedCrop, in a "
                "Compose; leave it out for others"
            )
        ends = [place for place, step in enumerate(steps) if type(step) is transforms.ToTensor]
        if not ends:
            raise UserError(f"run.pixels: fast needs a ToTensor among the transforms of {name}")
        pictures, (to_tensor, *numbers) = steps[: ends[0]], steps[ends[0] :]
        normalize = numbers.pop(0) if numbers and type(numbers[0]) is transforms.Normalize else None
        self.steps = [*fast_steps(pictures), Normalised(to_tensor, normalize), *numbers]

    def __call__(self, picture: Encoded) -> Tensor:
        seen: Any = picture
        for step in self.steps:
            seen = step(seen)
        return seen


def _innermost(dataset: Any) -> Any:
    """The data set in torchdistill's wrappers and torch's parts."""
    while not isinstance(dataset, DatasetFolder):
        if isinstance(dataset, Subset):
            dataset = dataset.dataset
        elif hasattr(dataset, "org_dataset"):
            dataset = dataset.org_dataset
        else:
            break
    return dataset
