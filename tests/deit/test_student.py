"""The student against an implementation of the design's text that shares nothing with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from deit.srd_deit import checkpoint_filter_fn
from deit.student import StudentOutput, create_student, read
from srd.errors import UserError

WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def released_weights(name: str, classes: int, size: int) -> dict[str, Tensor]:
    """Random weights under the names and shapes of the released checkpoints."""
    g = torch.Generator().manual_seed(3)
    width, _ = WIDTHS[name]
    tokens = (size // 16) ** 2 + 2

    def draw(*shape: int, scale: float = 0.05) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    w = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, tokens, width)}
    for conv, (cin, k) in {0: (3, 7), 3: (64, 3), 6: (64, 3)}.items():
        w[f"conv_embed.conv.{conv}.weight"] = draw(64, cin, k, k)
        w[f"conv_embed.conv.{conv + 1}.weight"] = 1 + draw(64)
        w[f"conv_embed.conv.{conv + 1}.bias"] = draw(64)
        w[f"conv_embed.conv.{conv + 1}.running_mean"] = draw(64)
        w[f"conv_embed.conv.{conv + 1}.running_var"] = 1 + draw(64).abs()
        w[f"conv_embed.conv.{conv + 1}.num_batches_tracked"] = torch.tensor(5)
    w["conv_embed.proj.weight"], w["conv_embed.proj.bias"] = draw(width, 64, 8, 8), draw(width)
    for n in range(12):
        shapes = {"attn.qkv": 3 * width, "attn.proj": width, "mlp.fc1": 4 * width}
        for part, out in shapes.items():
            w[f"blocks.{n}.{part}.weight"], w[f"blocks.{n}.{part}.bias"] = (
                draw(out, width),
                draw(out),
            )
        w[f"blocks.{n}.mlp.fc2.weight"], w[f"blocks.{n}.mlp.fc2.bias"] = (
            draw(width, 4 * width),
            draw(width),
        )
        for norm in ("norm1", "norm2"):
            w[f"blocks.{n}.{norm}.weight"], w[f"blocks.{n}.{norm}.bias"] = (
                1 + draw(width),
                draw(width),
            )
    w["norm.weight"], w["norm.bias"] = 1 + draw(width), draw(width)
    for head in ("head", "head_conv"):
        w[f"{head}.weight"], w[f"{head}.bias"] = draw(classes, width), draw(classes)
    return w


def reference(
    w: dict[str, Tensor], x: Tensor, heads: int, training: bool = False
) -> tuple[Tensor, ...]:
    """(class logits, conv-token logits, mean patch token), from the text of the design."""
    for conv, (stride, pad) in {0: (2, 3), 3: (1, 1), 6: (1, 1)}.items():
        x = F.conv2d(x, w[f"conv_embed.conv.{conv}.weight"], stride=stride, padding=pad)
        p = f"conv_embed.conv.{conv + 1}."
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        else:
            mean, var = w[p + "running_mean"], w[p + "running_var"]
        x = (x - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None]
        x = torch.relu(x * w[p + "weight"][:, None, None] + w[p + "bias"][:, None, None])
    x = F.conv2d(x, w["conv_embed.proj.weight"], w["conv_embed.proj.bias"], stride=8)
    patches = x.flatten(2).transpose(1, 2)
    first = w["cls_token"].expand(len(x), -1, -1)
    t = torch.cat([first, patches.mean(1, keepdim=True), patches], 1) + w["pos_embed"]
    width = t.shape[-1]

    def norm(v: Tensor, name: str) -> Tensor:
        centred = v - v.mean(-1, keepdim=True)
        scale = torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
        return centred / scale * w[name + ".weight"] + w[name + ".bias"]

    def linear(v: Tensor, name: str) -> Tensor:
        return v @ w[name + ".weight"].T + w[name + ".bias"]

    for n in range(12):
        b = f"blocks.{n}."
        qkv = linear(norm(t, b + "norm1"), b + "attn.qkv")
        q, k, v = qkv.reshape(len(t), -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width // heads), -1) @ v
        t = t + linear(attention.transpose(1, 2).flatten(2), b + "attn.proj")
        hidden = linear(norm(t, b + "norm2"), b + "mlp.fc1")
        gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        t = t + linear(gelu, b + "mlp.fc2")
    t = norm(t, "norm")
    return linear(t[:, 0], "head"), linear(t[:, 1], "head_conv"), t[:, 2:].mean(1)


@pytest.mark.parametrize(
    ("name", "classes", "size"), [("tiny", 1000, 224), ("small", 10, 96), ("base", 3, 32)]
)
def test_logits_equal_an_independent_implementation(name: str, classes: int, size: int) -> None:
    weights = released_weights(name, classes, size)
    student = create_student(name, classes, size)
    student.load_state_dict(weights)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        head, head_conv, _ = reference(weights, x, WIDTHS[name][1])
        torch.testing.assert_close(student.eval()(x), (head + head_conv) / 2, rtol=0, atol=1e-5)
        expected = reference(weights, x, WIDTHS[name][1], training=True)
        out = student.train()(x)
    assert isinstance(out, StudentOutput)
    for found, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


def test_state_dict_has_the_released_names_and_shapes() -> None:
    expected = {
        name: tuple(value.shape) for name, value in released_weights("tiny", 1000, 224).items()
    }
    found = {
        name: tuple(value.shape) for name, value in create_student("tiny").state_dict().items()
    }
    assert found == expected
    assert found["pos_embed"] == (1, 198, 192)


def test_initial_convolutions_are_kaiming_normal_and_have_no_bias() -> None:
    stem = create_student("tiny").conv_embed
    assert stem.conv[0].bias is None and stem.proj.bias is not None
    for conv, fan_in in ((stem.conv[3], 64 * 9), (stem.proj, 64 * 64)):
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)


@pytest.mark.parametrize(
    "arguments", [("tin", 10, 32), ("tiny", 10, 40), ("tiny", -1, 32), ("tiny", 1, 0)]
)
def test_arguments_that_make_no_student_are_errors(arguments: tuple[str, int, int]) -> None:
    with pytest.raises(UserError):
        create_student(*arguments)


def test_reading_is_what_the_network_computes() -> None:
    """To the bit, forward and backward; the tokens are those whose mean the features are."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    student = create_student("tiny", 5, 32)
    gradients = []
    for outputs in (lambda: read(student, images)[:3], lambda: student(images)):
        student.zero_grad()
        sum(value.square().sum() for value in outputs()).backward()
        gradients.append([p.grad.clone() for p in student.parameters()])
    assert all(map(torch.equal, *gradients))
    output, expected = read(student, images), student(images)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.distilled_logits, expected.conv_logits)
    assert torch.equal(output.features, expected.features)
    assert output.tokens.shape == (2, 4, 192)
    assert torch.equal(output.tokens.mean(1), output.features)
    bare = read(student, images, features=False)
    assert bare.features is None and bare.tokens is None
    assert torch.equal(bare.logits, output.logits)
    assert torch.equal(bare.distilled_logits, output.distilled_logits)
    with torch.no_grad():
        evaluated = read(student.eval(), images)
        assert torch.equal(evaluated.logits, student(images))
        assert evaluated.distilled_logits is None and evaluated.tokens.shape == (2, 4, 192)


# What timm's models can do


def student(**arguments: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"num_classes": 5, "img_size": 64, **arguments}
    return timm.create_model("srd_deit_tiny", **sizes).eval()


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_intermediates_are_the_tokens_after_each_block() -> None:
    model, seen = student(), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, tokens: seen.append(tokens))
    last, maps = model.forward_intermediates(IMAGES)
    assert len(maps) == len(seen) == 12 and torch.equal(last, model.norm(seen[11]))
    for features, tokens in zip(maps, seen[:12], strict=True):
        assert torch.equal(features, tokens[:, 2:].mT.reshape(2, 192, 4, 4))
    [layer] = model.get_intermediate_layers(IMAGES, n=1)
    assert torch.equal(layer, seen[11][:, 2:])


def test_features_only() -> None:
    backbone = student(num_classes=0, features_only=True, out_indices=(5, 11))
    assert backbone.feature_info.channels() == [192, 192]
    assert backbone.feature_info.reduction() == [16, 16]
    assert [features.shape for features in backbone(IMAGES)] == [(2, 192, 4, 4)] * 2


def test_another_input_size() -> None:
    model, larger = student(), student(img_size=96)
    larger.load_state_dict(checkpoint_filter_fn(model.state_dict(), larger))
    model.set_input_size(img_size=96)
    images = torch.randn(1, 3, 96, 96)
    assert model.image_size == 96 and torch.equal(model(images), larger(images))
    with pytest.raises(ValueError, match="sides a multiple of 16"):
        model.set_input_size(img_size=100)


def test_checkpointed_gradients_are_the_same() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = student().train()
        model.set_grad_checkpointing(checkpointing)
        model(IMAGES).logits.sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad)
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
