"""Weights to start from: what they replace, what stays new, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from deit.student import create_student
from srd.errors import UserError
from srd.models.initial import head_names, load_fitting, place_of, start_from

NEW, OLD = 4, 7  # classes


def same(model: nn.Module, weights: dict[str, torch.Tensor]) -> set[str]:
    """The names of the tensors that are those of `weights`."""
    return {k for k, v in model.state_dict().items() if k in weights and torch.equal(v, weights[k])}


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("test_resnet", ("fc",)),
        ("test_byobnet", ("head.fc",)),
        ("test_vit", ("head",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
    ],
)
def test_other_classes_get_a_new_head_and_nothing_else_is_new(
    name: str, heads: tuple[str, ...]
) -> None:
    model, other = (timm.create_model(name, num_classes=n) for n in (NEW, OLD))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit = load_fitting(model, other.state_dict(), "file", name)
    assert (fit.new_head, fit.resized) == (heads, ()) and head_names(model) == heads
    of_head = {k for k in before if k.startswith(tuple(f"{head}." for head in heads))}
    assert same(model, other.state_dict()) == set(before) - of_head
    assert all(not model.state_dict()[k].any() for k in of_head)
    assert str(fit) == f"a new head ({', '.join(heads)})"


def test_the_same_classes_keep_their_head() -> None:
    model, other = (timm.create_model("test_resnet", num_classes=OLD) for _ in range(2))
    fit = load_fitting(model, other.state_dict(), "file", "test_resnet")
    assert not fit.new_head and not str(fit)
    assert same(model, other.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("size", [32, 96])
def test_the_papers_positions_are_resized(size: int) -> None:
    model, other = create_student("tiny", OLD, size), create_student("tiny", OLD, 64)
    fit = load_fitting(model, other.state_dict(), "file", "tiny")
    assert fit.resized == ("pos_embed",) and not fit.new_head
    side = size // 16
    expected = resample_abs_pos_embed(other.pos_embed, [side, side], num_prefix_tokens=2)
    assert torch.equal(model.pos_embed, expected)
    assert same(model, other.state_dict()) == set(model.state_dict()) - {"pos_embed"}


def test_timms_positions_are_resized_by_timm() -> None:
    sizes = (96, 160)
    model, other = (timm.create_model("test_vit", img_size=s, num_classes=OLD) for s in sizes)
    fit = load_fitting(model, other.state_dict(), "file", "test_vit")
    assert fit.resized == ("pos_embed",)
    assert same(model, other.state_dict()) == set(model.state_dict()) - {"pos_embed"}


def test_weights_without_counters_of_batches_are_taken() -> None:
    model, other = (timm.create_model("test_resnet", num_classes=OLD) for _ in range(2))
    old = {k: v for k, v in other.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_fitting(model, old, "file", "test_resnet")
    assert set(old) <= same(model, old)


def test_another_network_is_refused() -> None:
    model, other = (timm.create_model(name) for name in ("test_resnet", "test_vit"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match="file does not fit test_resnet: "):
        load_fitting(model, other.state_dict(), "file", "test_resnet")
    assert same(model, before) == set(before)


@pytest.mark.parametrize(
    ("init", "name", "place"),
    [
        (None, "resnet18", None),
        (None, "tiny", None),
        (None, "resnet18.a1_in1k", "pretrained"),
        (None, "hf-hub:me/small", "pretrained"),
        ("w.pth", "resnet18.a1_in1k", "w.pth"),
        ("pretrained", "resnet18", "pretrained"),
    ],
)
def test_where_a_training_starts(init: str | None, name: str, place: str | None) -> None:
    assert place_of(init, name) == place


def start(where: str, name: str = "resnet18") -> str:
    model = timm.create_model("test_resnet", num_classes=NEW)
    return start_from(where, model, name, num_classes=NEW, image_size=32, role="student")


def test_a_file_with_what_was_made_to_fit(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"model": timm.create_model("test_resnet", num_classes=OLD).state_dict()}, file)
    told = start(str(file), "test_resnet")
    assert told == f"the student test_resnet starts from {file}, a new head (fc)"


def test_places_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("srd.models.initial.in_ckpts", lambda *names: None)
    for where, name, told in (
        ("nowhere.pth", "resnet18", "nowhere.pth"),
        ("resnet34.a1_in1k", "resnet18", "cannot start from resnet34.a1_in1k, which is another"),
        ("resnet18.a1_in1k", "resnet18", "from the Hub"),
        ("pretrained", "tiny", "give --init a file"),
    ):
        with pytest.raises(UserError, match=told):
            start(where, name)


@pytest.mark.parametrize(("classes", "told"), [(5, ""), (NEW, ", a new head (fc)")])
def test_published_weights_leave_no_head_that_timm_drew(
    on_the_hub: Callable[[str, int], nn.Module], classes: int, told: str
) -> None:
    """timm would draw a head of its own, another one on every process."""
    published = on_the_hub("me/small", 5).state_dict()
    model = timm.create_model("test_resnet", num_classes=classes)
    name, sizes = "hf-hub:me/small", {"num_classes": classes, "image_size": 32}
    said = start_from("pretrained", model, name, **sizes, role="student")
    assert said == f"the student {name} starts from the published weights {name}{told}"
    foreign = {"fc.weight", "fc.bias"} if told else set()
    assert same(model, published) == set(published) - foreign
    assert model.fc.weight.any() != bool(told)
