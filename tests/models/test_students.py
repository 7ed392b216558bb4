"""Students by name: registered ones, timm's, and those of other packages."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deit.student
from srd.errors import UserError
from srd.models import students
from srd.models.students import STUDENTS, Builder, Student, create_student, open_student

ROOT = Path(__file__).resolve().parents[2]

MINE = """
from timm.models.resnet import BasicBlock, ResNet
from srd.models.students import STUDENTS, Builder

def build(num_classes, image_size, drop_path):
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes, channels=(8, 8, 8, 12))

STUDENTS["mine_net"] = Builder(build)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`package(module, source)` installs a package that names it as `mine_net` and `absent_net`."""

    def install(module: str, source: str) -> None:
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[srd.students]\nmine_net = {module}\nabsent_net = {module}_absent\n"
        )
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    monkeypatch.setattr(students, "STUDENTS", dict(STUDENTS))
    return install


def test_a_student_of_another_package_is_there_without_an_import(
    package: Callable[[str, str], None],
) -> None:
    package("mine_module", MINE)
    student = open_student("mine_net", num_classes=4, image_size=32)
    output = student(torch.randn(2, 3, 32, 32))
    assert output.features is not None and output.features.shape == (2, 12)
    assert output.logits.shape == (2, 4)
    with pytest.raises(UserError, match=r"unknown student 'mine_ned' \(did you mean 'mine_net'"):
        create_student("mine_ned")
    with pytest.raises(UserError, match="absent_net cannot be imported"):
        create_student("absent_net")


def test_a_package_that_does_not_keep_its_word(package: Callable[[str, str], None]) -> None:
    package("mine_empty", "")
    with pytest.raises(UserError, match="mine_empty does not register the student mine_net"):
        create_student("mine_net")


def test_nothing_registered_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students, "STUDENTS", {})
    monkeypatch.setattr(students, "GROUP", "srd.nobody")
    with pytest.raises(UserError, match=r"unknown student 'tiny'.*pip install -e \."):
        create_student("tiny")
    assert create_student("test_vit", num_classes=3, image_size=32) is not None


@pytest.mark.slow
def test_the_papers_students_are_there_without_an_import(
    tmp_path: Path, run_python: Callable[..., str]
) -> None:
    """As an installed project declares them."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "declared-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: declared\nVersion: 1.0\n")
    lines = [f"{name} = {module}" for name, module in declared["srd.students"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[srd.students]", *lines]))
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from srd.models.students import create_student\n"
        "assert 'deit' not in sys.modules\n"
        "for name in ('tiny', 'small', 'base'):\n"
        "    print(type(create_student(name, num_classes=3, image_size=32)).__name__)\n"
    )
    assert run_python("-c", program).split() == ["ConvStemDeiT"] * 3


def test_the_papers_students_draw_what_they_drew() -> None:
    torch.manual_seed(0)
    direct = deit.student.ConvStemDeiT(*deit.student.SIZES["tiny"], 10, 32).state_dict()
    numbers = torch.get_rng_state()
    torch.manual_seed(0)
    opened = open_student("tiny", num_classes=10, image_size=32)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert list(opened.model.state_dict()) == list(direct)
    assert all(
        torch.equal(value, direct[name]) for name, value in opened.model.state_dict().items()
    )


def test_names_and_sizes_that_make_no_student() -> None:
    with pytest.raises(UserError, match=r"unknown student 'tinyy' \(did you mean 'tiny'"):
        open_student("tinyy")
    with pytest.raises(UserError, match=r"unknown teacher 'mobilenetv4_conv_smal' \(did you mean"):
        open_student("mobilenetv4_conv_smal", role="teacher")
    with pytest.raises(UserError, match=r"tiny cannot read images of 40x40.*--image-size 32"):
        open_student("tiny", image_size=40)
    with pytest.raises(UserError, match="classes, or 0 for no head"):
        open_student("tiny", num_classes=-1)


def test_timms_name_of_the_papers_student_trains_both_heads() -> None:
    student = open_student("srd_deit_tiny", num_classes=3, image_size=32)
    assert isinstance(student.model, deit.student.ConvStemDeiT)
    assert student.train()(torch.randn(2, 3, 32, 32)).distilled_logits is not None


def test_a_student_of_ones_own_in_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network without timm's interface brings its own reading."""

    def read(model: nn.Module, images: Tensor, *, features: bool = True) -> students.Output:
        pooled = images.mean((2, 3))
        return students.Output(pooled if features else None, model(pooled))

    def build(*, num_classes: int, image_size: int, drop_path: float) -> nn.Module:
        return nn.Linear(3, num_classes)

    monkeypatch.setitem(STUDENTS, "colour", Builder(build, read))
    student = open_student("colour", num_classes=4, image_size=8, reads_features=False)
    assert student(torch.ones(2, 3, 8, 8)).features is None
    student.reads_features = True
    assert torch.equal(student(torch.ones(2, 3, 8, 8)).features, torch.ones(2, 3))
    assert isinstance(student, Student) and list(student.model.state_dict()) == ["weight", "bias"]
