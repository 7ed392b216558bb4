"""Teachers: frozen for good, read as they expect, refused when they are not what they claim."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deit.student import create_student
from srd.config.fields import Teacher
from srd.device import Precision, lacks_bfloat16
from srd.errors import UserError
from srd.models import timm_models
from srd.models.frozen import FrozenTeacher, Normalization, round_weights
from srd.models.outputs import Output, width
from srd.models.teacher import LoadedTeacher, load_teacher, open_teacher

HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.4, 0.2))


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


def read(network: nn.Module, images: Tensor) -> Output:
    maps = network(images)
    return Output(maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3)))


def teacher_of(network: nn.Module, expected: Normalization = IMAGENET) -> FrozenTeacher:
    return FrozenTeacher(network, read, IMAGENET, expected)


def test_statistics_and_weights_never_move() -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    teacher = teacher_of(network)
    task = nn.ModuleDict({"teacher": teacher, "student": nn.BatchNorm2d(3)})
    for mode in (task.train, teacher.train, teacher.eval, lambda: teacher.train(True)):
        mode()
        assert not any(module.training for module in teacher.modules())
        teacher(torch.randn(4, 3, 8, 8))
    assert task.train()["student"].training
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


@pytest.mark.parametrize("name", ["test_byobnet", "test_vit", "test_resnet"])
def test_weights_that_are_rounded_once_say_the_same_bits(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5)
    teacher = FrozenTeacher(network, timm_models.read, IMAGENET, IMAGENET)
    images = torch.randn(2, 3, 160, 160)
    with torch.autocast("cpu", torch.bfloat16):
        before = teacher(images)
        round_weights(teacher.model, torch.bfloat16)
        after = teacher(images)
    assert any(p.dtype == torch.bfloat16 for p in teacher.parameters())
    assert all(p.dtype == torch.float32 for n, p in teacher.named_parameters() if "bn" in n)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.features, after.features)


def test_a_teacher_gives_the_same_answer_twice() -> None:
    teacher = teacher_of(small_network()).train()
    images = torch.randn(4, 3, 8, 8)
    first, second = teacher(images), teacher(images)
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.logits, second.logits)
    alone = teacher(images[:1])
    torch.testing.assert_close(alone.features, first.features[:1], rtol=0, atol=1e-6)


def test_nothing_in_a_teacher_is_trained() -> None:
    teacher = teacher_of(small_network())
    images = torch.randn(4, 3, 8, 8, requires_grad=True)
    out = teacher(images)
    assert not out.features.requires_grad and not out.logits.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_images_are_converted_to_what_the_teacher_expects() -> None:
    def keep(_: nn.Module, images: Tensor) -> Output:
        return Output(images, images)

    pixels = torch.rand(2, 3, 4, 4, dtype=torch.float64)

    def normalised(how: Normalization) -> Tensor:
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in how)
        return (pixels - mean) / std

    teacher = FrozenTeacher(nn.Identity(), keep, IMAGENET, HALVES)
    seen = teacher(normalised(IMAGENET)).features
    torch.testing.assert_close(seen, normalised(HALVES), rtol=0, atol=1e-5)


def test_images_that_fit_are_left_alone() -> None:
    seen: list[Tensor] = []

    def keep(_: nn.Module, images: Tensor) -> Output:
        seen.append(images)
        return Output(images, images)

    images = torch.randn(2, 3, 4, 4)
    FrozenTeacher(nn.Identity(), keep, HALVES, HALVES)(images)
    assert seen[0].data_ptr() == images.data_ptr()


# Teachers of a configuration


def load(file: Path, classes: int = 10, size: int = 32, **settings: object) -> LoadedTeacher:
    teacher = Teacher(**{"name": "regnety_002", "checkpoint": str(file), **settings})  # type: ignore[arg-type]
    return load_teacher(teacher, num_classes=classes, image_size=size, given=HALF)


def test_a_teacher_is_no_part_of_what_holds_it(teacher_file: Path) -> None:
    task = nn.Linear(2, 2)
    task.teach = load(teacher_file)
    images = torch.randn(4, 3, 32, 32)
    output = task.teach(images)
    assert torch.equal(task.teach.classify(images), output.logits)
    assert len(list(task.parameters())) == 2 and list(task.state_dict()) == ["weight", "bias"]
    task.train()
    assert not any(module.training for module in task.teach.model.modules())
    assert not any(p.requires_grad for p in task.teach.model.parameters())
    assert output.features is not None and not output.features.requires_grad


def test_images_are_normalised_as_the_teacher_expects(teacher_file: Path) -> None:
    teacher = load(teacher_file, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    with torch.no_grad():
        expected = teacher.model.model((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    logits = teacher.classify((pixels - 0.5) / 0.5)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_width_name_source_and_hash_are_reported(teacher_file: Path) -> None:
    loaded = load(teacher_file)
    wide = width(loaded.model, "features", image_size=32, role="teacher")
    assert wide == timm.create_model("regnety_002").num_features
    assert (loaded.name, loaded.source) == ("regnety_002", str(teacher_file))
    assert loaded.sha256 == hashlib.sha256(teacher_file.read_bytes()).hexdigest()


def test_a_teacher_is_opened_in_the_precision_of_the_run(teacher_file: Path) -> None:
    teacher = open_teacher(
        Teacher(name="regnety_002", checkpoint=str(teacher_file)),
        num_classes=10,
        image_size=32,
        given=HALF,
        precision=Precision.choose("fp64", torch.device("cpu")),
    )
    output = teacher(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert output.logits.dtype == output.features.dtype == torch.float64


def test_a_teacher_alone_computes_in_bfloat16(teacher_file: Path) -> None:
    images, cpu = torch.randn(4, 3, 32, 32), torch.device("cpu")
    exact = load(teacher_file)(images)
    rounded = load(teacher_file, bf16=True)
    found = rounded(images)
    for ours, theirs in ((found.features, exact.features), (found.logits, exact.logits)):
        assert ours.dtype == torch.float32 and not torch.equal(ours, theirs)
        assert (ours - theirs).norm() < 0.05 * theirs.norm()
    round_weights(rounded.model.model, torch.bfloat16)
    assert torch.equal(rounded(images).features, found.features)
    opened = open_teacher(
        Teacher(name="regnety_002", checkpoint=str(teacher_file), bf16=True),
        num_classes=10, image_size=32, given=HALF, precision=Precision(cpu),
    )  # fmt: skip
    assert "the teacher computes in bfloat16" in opened.notes[-1]
    assert opened.notes[-1].endswith("so it is slower") is lacks_bfloat16(cpu)


def test_the_papers_student_can_teach(tmp_path: Path) -> None:
    """With its own reading: the mean of the patch tokens, and of the two heads' logits."""
    torch.manual_seed(0)
    student = create_student("tiny", 10, 32).eval()
    torch.save(student.state_dict(), tmp_path / "tiny.pth")
    images = torch.randn(2, 3, 32, 32)
    output = load(tmp_path / "tiny.pth", name="tiny")(images)
    with torch.no_grad():
        assert torch.equal(output.logits, student(images))
        tokens = student.forward_features(images)
    assert torch.equal(output.features, tokens[:, 2:].mean(1))
    assert torch.equal(output.tokens, tokens[:, 2:])


def test_a_file_that_is_not_what_its_name_claims_is_refused(
    tmp_path: Path, teacher_file: Path
) -> None:
    digest = hashlib.sha256(teacher_file.read_bytes()).hexdigest()
    right, wrong = tmp_path / f"teacher-{digest[:8]}.pth", tmp_path / "teacher-0123abcd.pth"
    right.write_bytes(teacher_file.read_bytes())
    wrong.write_bytes(teacher_file.read_bytes())
    load(right)
    with pytest.raises(UserError, match="0123abcd"):
        load(wrong)


def test_other_networks_and_unknown_models_are_refused(teacher_file: Path) -> None:
    with pytest.raises(UserError, match="does not fit test_resnet with 10 classes"):
        load(teacher_file, name="test_resnet")
    with pytest.raises(UserError, match=r"unknown teacher 'regnetyy_002' \(did you mean"):
        load(teacher_file, name="regnetyy_002")


@pytest.mark.parametrize("headless", [False, True])
def test_other_classes_or_no_head_teach_features_alone(teacher_file: Path, headless: bool) -> None:
    weights = torch.load(teacher_file)["model"]
    if headless:
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
        torch.save(weights, teacher_file := teacher_file.with_name("headless.pth"))
    loaded = load(teacher_file, classes=10 if headless else 7)
    assert (
        not loaded.knows_classes and load(teacher_file.with_name("regnety_002.pth")).knows_classes
    )
    assert ["by its features alone" in note for note in loaded.notes] == [True]
    images = torch.randn(2, 3, 32, 32)
    whole = load(teacher_file.with_name("regnety_002.pth"))
    assert torch.equal(loaded(images).features, whole(images).features)


def test_a_teacher_reads_resized_images_where_it_cannot_read_the_students(tmp_path: Path) -> None:
    model = timm.create_model("test_convnext", num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth", classes=3, size=16, name="test_convnext")
    size = loaded.model.size  # the nearest that this version of timm can read
    assert loaded.knows_classes and loaded.notes == (
        f"the teacher test_convnext reads {size}x{size} pixels: images are resized for it",
    )
    images = torch.randn(2, 3, 16, 16)
    larger = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    usual = model.pretrained_cfg
    scale = 0.5 / torch.tensor(usual["std"]).view(3, 1, 1)
    shift = (0.5 - torch.tensor(usual["mean"]).view(3, 1, 1)) / torch.tensor(usual["std"]).view(
        3, 1, 1
    )
    with torch.no_grad():
        expected = model(larger * scale + shift)
    torch.testing.assert_close(loaded(images).logits, expected, rtol=1e-3, atol=1e-4)


def test_positions_of_another_size_are_resized(tmp_path: Path) -> None:
    torch.save(create_student("tiny", 10, 64).state_dict(), tmp_path / "tiny.pth")
    loaded = load(tmp_path / "tiny.pth", name="tiny", size=32)
    assert loaded.knows_classes
    assert loaded.notes == ("the teacher tiny: pos_embed resized for 32 pixels",)


def test_a_run_says_what_its_teacher_was_trained_on(tmp_path: Path, teacher_file: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    identity = {"class_names": ["a", "b"]}
    config = {"identity": identity, "data": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    content = {"model": torch.load(teacher_file)["model"], "config": config}
    torch.save(content, checkpoints / "best.pth")
    loaded = load(tmp_path / "run")
    assert loaded.class_names == ["a", "b"] and loaded.source.endswith("best.pth")
    assert load(teacher_file).class_names is None


# Teachers of the Hub


def from_hub(name: str, classes: int = 1000, size: int = 32) -> LoadedTeacher:
    teacher = Teacher(name=name)
    return load_teacher(teacher, num_classes=classes, image_size=size, given=HALF)


def test_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srd.models.teacher.in_ckpts", lambda *names: None)
    with pytest.raises(UserError, match=r"put regnety_160-a5fe301d\.pth into ckpts/"):
        from_hub("regnety_160")
    with pytest.raises(UserError) as refused:
        from_hub("resnet18.a1_in1k")
    message = str(refused.value)
    assert "resnet18.a1_in1k" in message and "set --teacher-checkpoint FILE" in message
    assert "regnety" not in message


def test_weights_that_are_not_on_the_hub() -> None:
    with pytest.raises(UserError, match="the teacher tiny has no weights on the Hub"):
        from_hub("tiny")
    with pytest.raises(UserError, match="timm has no weights 'resnetblur18'"):
        from_hub("resnetblur18")


def test_a_teacher_of_anybodys_repository(on_the_hub: Callable[[str, int], nn.Module]) -> None:
    model = on_the_hub("me/small", 5)
    pixels = torch.rand(2, 3, 32, 32)
    teacher = from_hub("hf-hub:me/small", classes=5)
    with torch.no_grad():
        expected = model((pixels - 0.1) / 0.5)
    logits = teacher.classify((pixels - 0.5) / 0.5)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert teacher.sha256 is None and teacher.source == "Hub weights hf-hub:me/small"


def test_a_repository_of_other_classes_teaches_features_alone(
    on_the_hub: Callable[[str, int], nn.Module],
) -> None:
    on_the_hub("me/small", 5)
    teacher = from_hub("hf-hub:me/small", classes=7)
    assert not teacher.knows_classes and "the 7 classes of the data" in teacher.notes[0]
    assert from_hub("hf-hub:me/small", classes=5).notes == ()
    with pytest.raises(UserError, match=r"no hf-hub:me/nothing from the Hub \("):
        from_hub("hf-hub:me/nothing", classes=7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mean", "grey"), ("mean", 0.5), ("mean", [0.5, 0.5]), ("mean", torch.zeros(2)),
     ("mean", [0.5, 0.5, float("nan")]), ("std", [0.2, 0.2, 0.0])],
)  # fmt: skip
def test_a_run_that_says_no_normalisation(
    tmp_path: Path, teacher_file: Path, name: str, value: object
) -> None:
    data = {"mean": [0.1] * 3, "std": [0.2] * 3, name: value}
    content = {"model": torch.load(teacher_file)["model"], "config": {"data": data}}
    torch.save(content, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match=rf"^{name} in the settings in .*teacher\.pth should"):
        load(tmp_path / "teacher.pth")


def test_a_teacher_reads_the_size_it_is_given(teacher_file: Path) -> None:
    own = load(teacher_file)
    images = torch.randn(2, 3, 32, 32)
    larger = F.interpolate(images, (48, 48), mode="bicubic", antialias=True)
    resized = load(teacher_file, image_size=48)
    assert resized.notes == (
        f"the teacher {resized.name} reads 48x48 pixels: images are resized for it",
    )
    torch.testing.assert_close(resized(images).logits, own(larger).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(resized(images).logits, own(images).logits, rtol=1e-2)


def test_a_run_of_another_size_is_told(tmp_path: Path) -> None:
    model = timm.create_model("regnety_002", num_classes=3).eval()
    content = {"model": model.state_dict(), "config": {"model": {"image_size": 64}}}
    torch.save(content, tmp_path / "weights.pth")
    (note,) = load(tmp_path / "weights.pth", classes=3).notes
    assert "trained on 64x64 pixels" in note and "--set teacher.image_size=64" in note
    assert load(tmp_path / "weights.pth", classes=3, size=64).notes == ()
    for strange in (True, 7, 10**50, "64"):
        content["config"] = {"model": {"image_size": strange}}
        torch.save(content, tmp_path / "weights.pth")
        assert load(tmp_path / "weights.pth", classes=3).notes == ()
