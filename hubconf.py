"""torch.hub's entry points: `torch.hub.load(REPOSITORY, "srd_deit_tiny", checkpoint=FILE)`.

Each takes `checkpoint`, a run's folder or a file of weights, released or one's own, which also says
the number of classes and the image size; it is read as data. Without one the weights are random.
Models come in evaluation mode: images (B, 3, H, W) to logits (B, C).
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

dependencies = ["torch", "torchvision", "timm", "safetensors", "pydantic", "yaml"]


def srd_deit_tiny(
    checkpoint: str | None = None, num_classes: int = 1000, image_size: int = 224
) -> nn.Module:
    """DeiT-tiny with a convolutional stem."""
    return _model("srd_deit_tiny", checkpoint, num_classes, image_size)


def srd_deit_small(
    checkpoint: str | None = None, num_classes: int = 1000, image_size: int = 224
) -> nn.Module:
    """DeiT-small with a convolutional stem."""
    return _model("srd_deit_small", checkpoint, num_classes, image_size)


def srd_deit_base(
    checkpoint: str | None = None, num_classes: int = 1000, image_size: int = 224
) -> nn.Module:
    """DeiT-base with a convolutional stem."""
    return _model("srd_deit_base", checkpoint, num_classes, image_size)


def resnet18(checkpoint: str | None = None, num_classes: int = 1000) -> nn.Module:
    """timm's plain ResNet-18."""
    return _model("resnet18", checkpoint, num_classes, 224)


def _model(
    architecture: str, checkpoint: str | None, num_classes: int, image_size: int
) -> nn.Module:
    import timm

    from deit.export import describe as deit  # registers srd_deit_* with timm
    from resnet.export import describe as resnet
    from srd.data.preprocess import Preprocessing
    from srd.errors import UserError
    from srd.export.classifier import open_classifier
    from srd.export.description import Description

    if checkpoint is None:
        random = Description(architecture, num_classes, Preprocessing(image_size))
        model: nn.Module = timm.create_model(
            architecture, num_classes=num_classes, **random.model_args
        )
        return model.eval()
    # by name: torch.hub's clone of the project is not installed
    classifier = open_classifier(Path(checkpoint), (deit, resnet))
    if (held := classifier.description.architecture) != architecture:
        raise UserError(f"{checkpoint} holds {held}, not {architecture}")
    return classifier.model
