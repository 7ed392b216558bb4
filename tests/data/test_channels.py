"""Pictures of 1 and of 4 channels: read, distorted, normalised, learnt, taught, exported."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from srd.config.fields import Augment
from srd.config.layers import Layer
from srd.config.reading import read_config
from srd.data.augment import train_transform
from srd.data.image_source import read_image
from srd.data.preprocess import Preprocessing
from srd.errors import UserError
from srd.export.classifier import open_classifier
from srd.models.frozen import FrozenTeacher, Normalization
from srd.models.initial import load_fitting
from srd.models.outputs import Output
from srd.models.students import create_network


def data_of(channels: int, **data: Any) -> Any:
    layer = Layer("here", {"model": {"in_chans": channels}, "data": data})
    return read_config([layer]).data


def png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return io.BytesIO(file.getvalue())


def test_pictures_are_read_in_their_mode() -> None:
    deep = np.full((2, 2), 0x7FFF, np.uint16)
    assert np.asarray(read_image(png(deep), mode="L")).tolist() == [[127, 127]] * 2
    clear = np.full((1, 1, 4), (10, 20, 30, 40), np.uint8)
    assert read_image(png(clear), mode="RGBA").getpixel((0, 0)) == (10, 20, 30, 40)
    assert read_image(png(clear)).getpixel((0, 0)) == (10, 20, 30)
    assert read_image(png(clear[:, :, :3].copy()), mode="RGBA").getpixel((0, 0))[3] == 255


def test_means_follow_the_channels() -> None:
    assert (data_of(1).mean, data_of(1).mode) == ((0.449,), "L")
    assert (data_of(4).std, data_of(4).mode) == ((0.229, 0.224, 0.225, 0.5), "RGBA")
    assert data_of(1, mean=[0.3], std=[0.2]).std == (0.2,)
    with pytest.raises(UserError, match=r"data\.mean has 2 numbers, and model\.in_chans is 1"):
        data_of(1, mean=[0.3, 0.3])


def test_views_have_the_channels() -> None:
    """Of greys with all of timm's distortions; its RandAugment knows no opacity."""
    picture = Image.new("RGB", (40, 30), "gray")
    for draw in range(8):
        torch.manual_seed(draw)
        grey = train_transform(Augment(), data_of(1), 16)(picture)
        assert grey.shape == (1, 16, 16)
    with pytest.raises(UserError, match=r"know no opacity.*set augment\.rand_augment to ''"):
        train_transform(Augment(), data_of(4), 16)
    clear = train_transform(Augment(rand_augment=""), data_of(4), 16)(picture)
    assert (
        clear.shape == Preprocessing(16, data_of(4).mean, data_of(4).std).transform()(picture).shape
    )


class Says(nn.Module):
    """Its images, as features."""

    weight: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_a_teacher_of_colours_sees_greys_and_no_opacity() -> None:
    pixels = torch.rand(2, 4, 3, 3)
    wants = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in wants)
    for channels in (1, 4):
        given = Normalization(data_of(channels).mean, data_of(channels).std)
        own_mean, own_std = (torch.tensor(values).view(-1, 1, 1) for values in given)
        teacher = FrozenTeacher(Says(), lambda net, x: Output(None, net(x)), given, wants)
        colours = pixels[:, :1].expand(-1, 3, -1, -1) if channels == 1 else pixels[:, :3]
        found = teacher((pixels[:, :channels] - own_mean) / own_std).logits
        torch.testing.assert_close(found, ((colours - mean) / std).flatten(1))


def test_first_convolutions_take_over_weights_of_colours() -> None:
    """As timm does it: the sum of the three is what grey pictures would have met."""
    sizes = {"num_classes": 2, "image_size": 32}
    colours, _ = create_network("test_resnet", **sizes)
    greys, _ = create_network("test_resnet", **sizes, in_chans=1)
    load_fitting(greys, colours.state_dict(), "there", "test_resnet")
    images = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        seen = [
            net.eval()(x) for net, x in ((greys, images), (colours, images.expand(1, 3, 32, 32)))
        ]
    torch.testing.assert_close(*seen)
    with pytest.raises(UserError, match=r"the student tiny reads pictures of 3 channels"):
        create_network("tiny", **sizes, in_chans=1)


def test_a_student_of_greys_is_trained_and_read_back(
    recipe: Path, tmp_path: Path, deit: Callable[..., Any]
) -> None:
    line = ["--config", recipe, "--model", "test_resnet", "--output", tmp_path, "--name", "grey"]
    line += ["--epochs", 1, "--warmup-epochs", 0, "--set", "model.in_chans=1"]
    done = deit("--train-student", *line)
    assert done.code == 0, done.err
    classifier = open_classifier(tmp_path / "grey")
    assert classifier.model(torch.zeros(1, 1, 16, 16)).shape == (1, 10)
    assert classifier.description.to_config()["pretrained_cfg"]["input_size"] == [1, 16, 16]
    other = [*line, "--name", "other", "--teacher", "test_resnet", "--set", "model.in_chans=3"]
    refused = deit("--train-student", *other, "--teacher-checkpoint", tmp_path / "grey")
    assert refused.code == 2 and "reads pictures of 1 channels, and the student of 3" in refused.err
