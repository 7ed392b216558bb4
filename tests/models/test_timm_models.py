"""Any timm classifier as student and as teacher: what is read, how wide it is, what is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.errors import UserError
from srd.models.frozen import FrozenTeacher, Normalization
from srd.models.outputs import Output, width
from srd.models.students import Student, open_student
from srd.models.timm_models import check_name, check_reading, create_classifier, read

HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BATCH, CLASSES = 3, 5


class Family(NamedTuple):
    """One small member: image size, width, tokens besides prefixes (0: none), and heads."""

    name: str
    size: int
    width: int
    tokens: int = 0
    heads: int = 1


FAMILIES = [
    Family("test_resnet", 32, 96),
    Family("regnety_002", 32, 368),
    Family("test_byobnet", 32, 256),
    Family("mobilenetv3_small_050", 32, 288),
    Family("mobilenetv4_conv_small_035", 32, 336),
    Family("test_efficientnet", 32, 256),
    Family("rexnet_100", 32, 1280),  # with dropout in its head
    Family("densenet121", 32, 1024),
    Family("ghostnet_050", 32, 480),
    Family("hgnetv2_b0", 32, 1024),
    Family("test_nfnet", 32, 192),
    Family("test_convnext", 32, 64),
    Family("test_mambaout", 32, 64),  # feature maps with channels last
    Family("edgenext_xx_small", 32, 168),
    Family("fastvit_t8", 32, 768),
    Family("mobilevit_xxs", 32, 320),
    Family("efficientvit_b0", 32, 128),
    Family("poolformer_s12", 32, 512),
    Family("test_maxvit", 32, 128),
    Family("test_vit", 32, 64, tokens=4),
    Family("gmlp_ti16_224", 32, 128, tokens=4),
    Family("levit_128s", 32, 384, tokens=1, heads=2),
    Family("deit_tiny_distilled_patch16_224", 32, 192, tokens=4, heads=2),
    Family("pit_ti_distilled_224", 32, 256, heads=2),  # its last tokens are class tokens
    Family("pvt_v2_b0", 32, 256),
    Family("coat_tiny", 32, 152),  # token sequences of three sizes
    Family("swin_tiny_patch4_window7_224", 32, 768),
]


def images(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Family, Student]]:
    torch.manual_seed(0)
    family: Family = request.param
    if not timm.is_model(family.name):
        pytest.skip(f"timm {timm.__version__} has no {family.name}")
    yield family, open_student(family.name, num_classes=CLASSES, image_size=family.size)


def test_as_a_student_every_parameter_gets_a_gradient(opened: tuple[Family, Student]) -> None:
    family, student = opened
    output = student.train()(images(family.size))
    assert output.logits.shape == (BATCH, CLASSES)
    assert output.features is not None and output.features.shape == (BATCH, family.width)
    tokens = (BATCH, family.tokens, family.width) if family.tokens else None
    assert (tuple(output.tokens.shape) if output.tokens is not None else None) == tokens
    targets = torch.arange(BATCH)
    loss = F.cross_entropy(output.logits, targets) + output.features.square().mean()
    assert (output.distilled_logits is not None) == (family.heads == 2)
    if output.distilled_logits is not None:
        assert not torch.equal(output.distilled_logits, output.logits)
        loss = loss + F.cross_entropy(output.distilled_logits, targets)
    student.zero_grad()
    loss.backward()
    grads = {name: p.grad for name, p in student.named_parameters() if p.requires_grad}
    assert not [name for name, grad in grads.items() if grad is None]
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)
    assert any(grad.abs().max() > 0 for grad in grads.values() if grad is not None)


def test_as_a_teacher_it_says_what_the_model_says(opened: tuple[Family, Student]) -> None:
    family, student = opened
    teacher = FrozenTeacher(copy.deepcopy(student.model), read, HALF, HALF)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    output = teacher(images(family.size))
    with torch.no_grad():
        expected = teacher.model(images(family.size))
    torch.testing.assert_close(output.logits, expected, rtol=1e-6, atol=1e-6)
    assert output.distilled_logits is None
    assert output.features is not None and output.features.shape == (BATCH, family.width)
    for reads in ("features", "tokens") if family.tokens else ("features",):
        wide = width(teacher, reads, image_size=family.size, role="teacher")
        assert wide == family.width
    for name, value in teacher.state_dict().items():
        assert torch.equal(before[name], value), name


def test_without_features_it_is_the_plain_model(opened: tuple[Family, Student]) -> None:
    family, student = opened
    student.train()
    both = [copy.deepcopy(student.model) for _ in range(2)]
    torch.manual_seed(1)
    output = read(both[0], images(family.size), features=False)
    torch.manual_seed(1)
    expected = both[1](images(family.size))
    heads = expected if isinstance(expected, tuple) else (expected, None)
    assert output.features is None and output.tokens is None
    assert torch.equal(output.logits, heads[0])
    if heads[1] is not None:
        assert output.distilled_logits is not None
        assert torch.equal(output.distilled_logits, heads[1])


@pytest.mark.parametrize(
    ("name", "pooled"),
    [
        ("test_byobnet", lambda last: last.mean((2, 3))),  # (B, D, H, W)
        ("test_mambaout", lambda last: last.mean((1, 2))),  # (B, H, W, D)
        ("test_vit", lambda last: last[:, 0]),  # (B, N, D): its head reads the class token
        ("gmlp_ti16_224", lambda last: last.mean(1)),  # (B, N, D): its head averages
    ],
)
def test_features_are_the_average_over_positions_or_what_the_head_reads(name, pooled) -> None:
    torch.manual_seed(0)
    model = create_classifier(name, num_classes=3, image_size=64).eval()
    with torch.no_grad():
        output = read(model, images(64))
        assert torch.equal(output.features, pooled(model.forward_features(images(64))))
        if output.tokens is not None:
            prefix = model.num_prefix_tokens if name == "test_vit" else 0
            assert torch.equal(output.tokens, model.forward_features(images(64))[:, prefix:])


def test_features_and_logits_come_from_the_same_pass_where_a_head_drops() -> None:
    """RexNet drops in its head: the features are taken before it, the logits after it."""
    torch.manual_seed(0)
    model = create_classifier("rexnet_100", num_classes=3, image_size=32)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()  # so that two passes compute the same
    torch.manual_seed(1)
    output = read(model, images(32))
    torch.manual_seed(1)
    assert torch.equal(output.logits, model(images(32)))
    assert torch.equal(output.features, model.forward_features(images(32)).mean((2, 3)))


def test_the_second_head_of_a_distilled_model_is_averaged_in_evaluation() -> None:
    torch.manual_seed(0)
    student = open_student("deit_tiny_distilled_patch16_224", num_classes=3, image_size=32)
    training, evaluation = student.train()(images(32)), student.eval()(images(32))
    assert training.distilled_logits is not None
    mean = (training.logits + training.distilled_logits) / 2
    torch.testing.assert_close(evaluation.logits, mean, rtol=0, atol=1e-6)
    assert evaluation.distilled_logits is None


def test_the_papers_teacher_is_3024_wide() -> None:
    with torch.device("meta"):
        student = open_student("regnety_160", num_classes=1000, image_size=32)
        assert width(student, "features", image_size=32, role="teacher") == 3024


def test_looking_at_a_black_image_leaves_no_trace() -> None:
    torch.manual_seed(0)
    student = open_student("rexnet_100", num_classes=3, image_size=32).train()
    student.model.features[0].eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    modes, numbers = [m.training for m in student.modules()], torch.get_rng_state()
    assert width(student, "features", image_size=32, role="student") == 1280
    assert [m.training for m in student.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


# What is refused


@pytest.mark.parametrize(
    ("name", "size", "mend"),
    [
        ("densenet121", 16, "--image-size 32"),  # nothing is left to pool
        ("crossvit_tiny_240", 224, "--image-size 240"),  # built, and then it does not fit itself
        ("efficientformer_l1", 64, "--image-size 224"),  # takes a size, and reads no other
        ("twins_svt_small", 240, "--image-size 2"),  # cannot even be built (224 or 256 can)
    ],
)
def test_a_size_that_a_model_cannot_read_names_one_that_it_can(
    name: str, size: int, mend: str
) -> None:
    with torch.device("meta"), pytest.raises(UserError) as refused:
        open_student(name, num_classes=3, image_size=size)
    message = str(refused.value)
    assert f"the student {name} cannot read images of {size}x{size} pixels (" in message
    assert mend in message and "\n" not in message


def test_the_size_that_is_named_can_be_read() -> None:
    with pytest.raises(UserError) as refused:
        open_student("test_convnext", num_classes=3, image_size=16)
    size = re.search(r"--image-size (\d+)", str(refused.value))
    assert size is not None
    open_student("test_convnext", num_classes=3, image_size=int(size[1]))


def test_models_are_built_for_the_size_that_is_asked_for() -> None:
    assert create_classifier("test_vit", num_classes=3, image_size=64).pos_embed.shape[1] == 17
    assert create_classifier("test_vit", num_classes=3, image_size=32).pos_embed.shape[1] == 5


def drop_paths(model: nn.Module) -> list[float]:
    return [m.drop_prob for m in model.modules() if getattr(m, "drop_prob", 0)]


def test_drop_path_is_what_is_asked_for() -> None:
    for name in ("test_vit", "swin_tiny_patch4_window7_224"):  # whose default in timm is 0.1
        plain = create_classifier(name, num_classes=3, image_size=64)
        assert drop_paths(plain) == []
        dropping = create_classifier(name, num_classes=3, image_size=64, drop_path=0.3)
        assert max(drop_paths(dropping)) == pytest.approx(0.3)


def test_a_model_without_drop_path_refuses_one() -> None:
    create_classifier("ghostnet_050", num_classes=3, image_size=32)
    with pytest.raises(
        UserError, match=r"ghostnet_050 has no drop path: set model\.drop_path to 0"
    ):
        create_classifier("ghostnet_050", num_classes=3, image_size=32, drop_path=0.1)


def test_names_that_nobody_has() -> None:
    with pytest.raises(UserError, match=r"unknown teacher 'regnetyy_002' \(did you mean 'regnety"):
        check_name("regnetyy_002", role="teacher")
    with pytest.raises(UserError, match=r"unknown student 'mine2' \(did you mean 'mine'\?\)"):
        check_name("mine2", role="student", others=["mine"])
    with pytest.raises(UserError, match=r"no weights 'resnet18\.a1_in2k' \(did you mean"):
        check_name("resnet18.a1_in2k")
    check_name("resnet18.a1_in1k")


def test_no_classes() -> None:
    with pytest.raises(UserError, match="classes, or 0 for no head"):
        create_classifier("test_vit", num_classes=-1, image_size=32)


@pytest.mark.skipif(not timm.is_model("gemma4_vit_167m_enc"), reason="a timm without encoders")
def test_an_encoder_is_no_classifier() -> None:
    with (
        torch.device("meta"),
        pytest.raises(UserError, match="gemma4_vit_167m_enc is no classifier"),
    ):
        open_student("gemma4_vit_167m_enc", num_classes=3, image_size=96)


def said(network: nn.Module) -> str:
    with pytest.raises(UserError) as refused:
        check_reading(network, "odd", num_classes=3, image_size=8, role="teacher")
    return str(refused.value)


class Odd(nn.Module):
    """A network whose outputs are those that it is made with."""

    num_features = 4

    def __init__(self, logits: object, pooled: Tensor | None = None) -> None:
        super().__init__()
        self.logits, self.pooled, self.weight = logits, pooled, nn.Parameter(torch.ones(1))

    def forward_features(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 2, 4)

    def forward_head(self, last: Tensor, pre_logits: bool = False) -> object:
        return self.pooled if pre_logits else self.logits


def test_outputs_that_cannot_be_read_are_refused() -> None:
    one = torch.ones(1, 3)
    odd = [Odd((one, one, one), one), Odd(torch.ones(1, 7), one), Odd(one, torch.ones(1, 2, 4))]
    several, other_classes, unpooled = (Student(model, read) for model in odd)
    assert "returns a tuple" in said(several)
    assert "the teacher odd is no classifier: for each image it gives (7,)" in said(other_classes)
    assert "not one vector an image but (2, 4)" in said(unpooled)
    assert "--distillation kd" in said(unpooled)
    check_reading(
        Student(Odd(one, torch.ones(1, 4)), read),
        "odd",
        num_classes=3,
        image_size=8,
        role="teacher",
    )


def test_tokens_of_a_model_that_has_none() -> None:
    student = open_student("test_resnet", num_classes=3, image_size=32)
    with pytest.raises(UserError, match="reads tokens, and the student has none"):
        width(student, "tokens", image_size=32, role="student")


def test_output_has_the_order_of_the_design() -> None:
    assert Output._fields == ("features", "logits", "distilled_logits", "tokens", "maps")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_maps_are_the_last_ones_channels_first_and_their_mean_is_the_feature(name: str) -> None:
    torch.manual_seed(0)
    model = create_classifier(name, num_classes=3, image_size=64).eval()
    output = read(model, images(64))
    maps = output.read("maps")
    assert maps is not None and maps.shape[:2] == (3, model.num_features)
    if name == "test_vit":  # row by row
        assert torch.equal(maps[:, :, 1, 2], output.tokens[:, 1 * maps.shape[3] + 2])
    else:
        torch.testing.assert_close(maps.mean(dim=(2, 3)), output.features)
    assert output._replace(maps=None, tokens=torch.zeros(2, 5, 3)).read("maps") is None
