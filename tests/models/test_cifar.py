"""Networks of the CIFAR pairs: of the size, and with the names, of the public checkpoints."""

from __future__ import annotations

import pytest
import torch

from srd.errors import UserError
from srd.models.cifar import NETWORKS
from srd.models.outputs import width
from srd.models.students import create_student, open_student

# Parameters with 100 classes, as the authors of the comparisons report them; width of the features.
SIZES = {
    "cifar_resnet20": (278_324, 64),
    "cifar_resnet110": (1_736_564, 64),
    "cifar_resnet8x4": (1_233_540, 256),
    "cifar_resnet32x4": (7_433_860, 256),
    "cifar_resnet50": (23_705_252, 2048),
    "cifar_wrn_16_2": (703_284, 128),
    "cifar_wrn_40_2": (2_255_156, 128),
    "cifar_vgg8": (3_965_028, 512),
    "cifar_vgg13": (9_462_180, 512),
    "cifar_mobilenetv2": (812_836, 1280),
    "cifar_shufflev1": (949_258, 960),
    "cifar_shufflev2": (1_355_528, 1024),
}
NAMES = {  # of the public checkpoints' tensors, some of each kind
    "cifar_resnet8x4": ("conv1.weight", "layer1.0.downsample.0.weight", "layer3.0.bn2.bias", "fc.bias"),
    "cifar_resnet50": ("layer1.0.shortcut.1.weight", "layer4.2.conv3.weight", "linear.weight"),
    "cifar_wrn_16_2": ("block1.layer.0.convShortcut.weight", "block3.layer.1.bn1.weight", "bn1.bias"),
    "cifar_vgg13": ("block0.0.bias", "block4.4.running_mean", "classifier.weight"),
    "cifar_mobilenetv2": ("conv1.0.weight", "blocks.1.0.conv.6.weight", "conv2.1.bias",
                          "classifier.0.weight"),
    "cifar_shufflev1": ("conv1.weight", "layer2.7.conv3.weight", "linear.bias"),
    "cifar_shufflev2": ("layer1.0.conv5.weight", "layer2.7.bn3.weight", "conv2.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_it_is_of_the_published_size(name: str) -> None:
    student = open_student(name, num_classes=100, image_size=32)
    parameters = sum(p.numel() for p in student.model.parameters())
    assert (parameters, width(student, "features", image_size=32, role="student")) == SIZES[name]


@pytest.mark.parametrize("name", NAMES)
def test_tensors_have_the_public_names(name: str) -> None:
    assert set(NAMES[name]) <= set(create_student(name, num_classes=100).state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_read_is_what_it_says_and_its_maps_are_the_features(name: str) -> None:
    torch.manual_seed(0)
    student, images = (
        open_student(name, num_classes=5, image_size=32).eval(),
        torch.randn(2, 3, 32, 32),
    )
    output = student(images)
    assert torch.equal(output.logits, student.model(images))
    assert torch.equal(output.read("maps").mean(dim=(2, 3)), output.features)


def test_it_has_no_drop_path() -> None:
    with pytest.raises(UserError, match="have no drop path"):
        create_student("cifar_vgg8", num_classes=5, drop_path=0.1)
