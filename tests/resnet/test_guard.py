"""Values that are wrong in a torchdistill file: one line, exit code 2, before anything is written."""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from srd.files.checkpoint import load_file
from tests.conftest import assert_same_values
from tests.resnet.recipes import CE, CRITERION, DATA, LOADERS, TEST, Command

MODEL = "\nmodels:\n  model: {key: resnet18, kwargs: {num_classes: 10}}\n"
PLAIN = "\n  model: {forward_proc: forward_batch_only}\n"
ALONE = DATA + MODEL + "\ntrain:" + LOADERS + PLAIN + CRITERION + CE + TEST
FOLDERS = re.sub(
    r"digits/(\w+):(.+\n.+)resnet.extension.Digits\n    init: {kwargs: {split: train, per_class: \d,",
    r"digits/\1:\2torchvision.datasets.ImageFolder\n    init: {kwargs: {root: ROOT/\1,",
    ALONE,
).replace("num_classes: 10", "num_classes: 2").replace("batch_size: 10", "batch_size: 4")  # fmt: skip
Refused = Callable[[str], str]


@pytest.fixture
def refused(command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Runs a configuration that must be refused; returns what it said."""

    def call(text: str, *, begun: bool = False) -> str:
        capsys.readouterr()
        assert command(text) == 2
        told = capsys.readouterr()
        lines = [line for line in told.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and len(lines[0]) < 600, told.err
        assert told.err.splitlines()[-1] == lines[0] and "Traceback" not in told.err
        assert begun or not (tmp_path / "runs").exists(), "refused input leaves no run behind"
        return lines[0]

    return call


def changed(old: str, new: str, text: str = ALONE) -> str:
    assert old in text
    return text.replace(old, new)


SCHEDULE = "scheduler: {key: MultiStepLR, kwargs: {milestones: [1], gamma: 0.1}}"
EPOCHS, BATCH, HEAD = "num_epochs: 2", "batch_size: 10", "{num_classes: 10}"
WRONG: list[tuple[str, str, str]] = [
    # sections
    (MODEL, "\nmodel: {name: tiny}\n", r"unknown section 'model' \(deit/main.py reads such files"),
    (MODEL, "\nmodels: 5\n", "models in .* should hold `key: value` lines, not 5"),
    (MODEL, "\nmodels:\n", "models in .* should hold"),
    (MODEL, "\nmodels: {}\n", "needs a student_model"),
    (MODEL, "\nmodels: {modl: {key: resnet18}}\n", "'models.modl'.*did you mean 'models.model"),
    ("test: {test_data_loader: *val}", "test: null", "test in .* should hold"),
    ("test: {test_data_loader: *val}", "test: {}", "test.test_data_loader is missing"),
    ("test: {test_data_loader: *val}", "test: [*val]", "test in .* should hold"),
    ("run: {log_every: 1}", "run: abc", "run must hold `key: value` lines, not 'abc'"),
    ("run: {log_every: 1}", "run: {keep_last: 0}", "keep_last"),
    ("test_data_loader: *val", "test_data_loader: {dataset_id: x, kwargs: {batch_size: 1}}",
     "test.test_data_loader.dataset_id: no data set 'x'.*digits/train, digits/val"),
    (DATA[DATA.index("datasets:"):], "datasets: {a: 5}\n", "no data set 'digits/train'"),
    ("dataset_id: digits/val", "dataset_id: [digits/val]", "val_data_loader.dataset_id"),
    # numbers
    *((EPOCHS, f"num_epochs: {n}", "train.num_epochs") for n in
      ("0", "-1", "1.5", "many", ".inf", "true", "[2]", "null", "100000000000000000000")),
    (EPOCHS, "", "train.num_epochs is missing"),
    (EPOCHS, "num_epoch: 2\n  num_epochs: 2", "'train.num_epoch'.*did you mean 'train.num_epochs'"),
    (EPOCHS, "num_epochs: 2\n  stage1: {num_epochs: 2}", "stands beside stage1"),
    *((BATCH, f"batch_size: {n}", "train_data_loader.kwargs.batch_size") for n in
      ("0", "-3", "1", "10.5", "null", "'10'")),
    # a switch is no number, a word no switch, a text no number
    *((old, old[: old.index(":")] + f": {new}", said) for old, new, said in (
        (BATCH, "true", "batch_size cannot be true"), ("lr: 0.02", "yes", "lr cannot be true"),
        ("gamma: 0.1", "true", "gamma cannot be true"), ("gamma: 0.1", "'0.1'", "scheduler.gamma should"),
        ("weight: 1.0", "true", "weight cannot be true"), ("weight: 1.0", "'1'", "ce.weight should"),
        (EPOCHS, "'2'", "train.num_epochs"), ("weight_decay: 1e-4", "true", "weight_decay cannot"),
        ("uses_label: true", "maybe", "uses_label should be true or false, not 'maybe'"),
        ("is_from_teacher: false", "0", "is_from_teacher should be"), ("size: 32", "true", "size cannot"),
        ("per_class: 3", "true", "per_class cannot"))),
    ("key: SGD,", "filters_params: 'no', key: SGD,", "filters_params"),
    (BATCH, "batch_size: 31", "larger than the 30 training images"),
    ("batch_size: 250", "batch_size: 0", "val_data_loader.kwargs.batch_size"),
    (BATCH + ", num_workers: 0", BATCH + ", num_workers: -1", "num_workers"),
    (BATCH, BATCH + ", nonsense: 1", "train_data_loader.kwargs.nonsense"),
    ("lr: 0.02", "lr: .nan", "train.optimizer.kwargs.lr .*finite"),
    ("lr: 0.02", "lr: 1.0e+300", "train.optimizer.kwargs.lr .*usual size"),
    ("milestones: [1]", "milestones: [1.5]", "milestones are whole numbers"),
    ("kwargs: {size: 32}", "kwargs: {size: 100000}", "size is 100000: 4,096 are the most"),
    (HEAD, "{num_classes: 4000000}", "num_classes is 4000000: 1,000,000 are the most"),
    ("lr: 0.02", "lr: -0.02", "nvalid learning rate"),
    ("lr: 0.02", "lr: fast", "optimizer.lr should be a number, not 'fast'"),
    ("lr: 0.02", "speed: 1, lr: 0.02", "speed"),
    ("key: SGD,", "max_grad_norm: -1, key: SGD,", "max_grad_norm"),
    ("gamma: 0.1", "gamma: .inf", "train.scheduler.kwargs.gamma"),
    ("milestones: [1]", "milestone: [1]", "milestone"),
    (SCHEDULE, "scheduler: {key: StepLR, kwargs: {step_size: 0}}", "train.scheduler.*zero"),
    (SCHEDULE, "scheduler: {key: CosineAnnealingLR, kwargs: {T_max: 0}}", "train.scheduler.*zero"),
    (SCHEDULE, "scheduler: {key: StepLR, kwargs: {step_size: 1, gamma: -1.0}}",
     "train.scheduler: it leads to a learning rate of -0.02"),
    (SCHEDULE, "scheduler: {key: ReduceLROnPlateau, kwargs: {patience: word}}", "scheduler.patience"),
    (SCHEDULE, "scheduler: {key: ReduceLROnPlateau, kwargs: {}, scheduling_step: 1}",
     "leave run.evaluate_every at 1"),
    # networks
    (HEAD, "{num_classes: 2}", r"resnet18 \(num_classes\) knows 2 classes, the data has 10"),
    (HEAD, "{num_classes: 1000}", "knows 1000 classes, the data has 10"),
    *((HEAD, f"{{num_classes: {n}}}", "resnet18 cannot be built") for n in ("-1", "abc", "[1]")),
    ("key: resnet18, kwargs: {", "key: resnet50, kwargs: {width_per_group: 20000, ",
     "cannot be built.*more than 1,073,741,824 parameters"),
    (HEAD, "{num_classes: 10, nonsense: 1}", "models.model.kwargs.nonsense is not an argument"),
    (HEAD, "{num_classes: 2, weights: IMAGENET1K_V1}", "resnet18 cannot be built.*num_classes"),
    (HEAD, "5", "models.model.kwargs"),
    (HEAD, HEAD + ", src_ckpt: no/such.pth", "no weights for the student resnet18 at no/such.pth"),
    ("key: resnet18", "key: [resnet18]", "models.model.key"),
    ("key: resnet18", "key: ResNet18_Weights", "unknown student model"),
    # data
    ("split: train", "split: nope", "no split 'nope'"),
    *(("per_class: 3", f"per_class: {n}", "per_class of the digits") for n in
      ("-3", "0", "many", "1.5")),
    ("        !import_call {key: torchvision.transforms.ToTensor}", "", "must end in a tensor"),
    ("{key: torchvision.transforms.Resize, init: {kwargs: {size: 32}}}",
     "{key: torchvision.transforms.Resize, init: {kwargs: {size: big}}}", "."),
    # losses
    ("module_path: '.'", "module_path: layer9", "train: a first step fails"),
    ("key: CrossEntropyLoss", "key: CrossEntropyLos", "did you mean 'CrossEntropyLoss'"),
    ("reduction: mean", "reduction: men", "men"),
    ("weight: 1.0", "weight: heavy", "ce.weight should be a number"),
    ("weight: 1.0", "", "weight"),
    ("forward_proc: forward_batch_only", "forward_proc: forward_nothing", "forward_nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), WRONG, ids=lambda text: text[-40:])
def test_a_value_that_is_wrong(refused: Refused, old: str, new: str, said: str) -> None:
    message = refused(changed(old, new))
    assert re.search(said, message), message


def test_published_weights_without_a_network(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    said = refused(changed(HEAD, "{weights: IMAGENET1K_V1}"))
    assert "resnet18 cannot be built" in said and "no network in tests" in said


def test_weights_of_the_student_may_be_where_its_run_puts_them(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # below which a file may write
    place = tmp_path / "student.pt"
    text = changed(HEAD, HEAD + f", src_ckpt: {place}, dst_ckpt: {place}")
    assert command(changed(EPOCHS, "num_epochs: 1", text)) == 0
    assert load_file(place)["model"]["fc.weight"].shape == (10, 512)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--seed=-1", "seed"),
        ("--seed=many", "seed"),
        ("--seed=100000000000000000000", "seed"),
        ("--device=tpu", "device"),
        ("--epochs=2", "a torchdistill file says it itself, under train.num_epochs"),
        ("--batch_size=2", "under train.train_data_loader"),
        ("--name=../x", "name .*below --output"),
        ("--name=/tmp/x", "name .*below --output"),
        ("--name=..", "name .*below --output"),
        ("--name=a\0b", "name .*printable"),
        ("--name=" + "x" * 300, "name .*at most 200 bytes"),
        ("--output=a\0b", "output .*NUL"),
        ("--log=a\0b", "run_log .*NUL"),
        ("--resume=a\0b", "resume .*NUL"),
        ("--output=~nobody-here/x", "output .*home"),
    ],
    ids=lambda text: text[:30],
)
def test_a_flag_that_is_wrong(
    command: Command, capsys: pytest.CaptureFixture[str], flags: str, said: str
) -> None:
    assert command(ALONE, flags) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{said}.*\n", told), told


@pytest.fixture
def folders(make_jpegs: Callable[..., Path], tmp_path: Path) -> Callable[[Mapping[str, int]], str]:
    """The text of a configuration whose pictures are in folders, and these folders."""

    def make(counts: Mapping[str, int]) -> str:
        return FOLDERS.replace("ROOT", str(make_jpegs(tmp_path / "data", counts)))

    return make


TWO = {"train/a": 6, "train/b": 6, "val/a": 3, "val/b": 3}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"train/c": 3}, "3 classes in train, 2 in val; missing from val: c"),
        ({"val/c": 1}, "only in val: c"),
        ({"train/.ipynb_checkpoints": 1}, "hidden folder"),
        ({"train/.ipynb_checkpoints": 1, "val/.ipynb_checkpoints": 1}, "hidden folder"),
        ({"train/c": 1, "val/c": 1}, "knows 2 classes, the data has 3"),
    ],
    ids=str,
)
def test_classes_that_differ(
    refused: Refused, folders: Any, more: dict[str, int], said: str
) -> None:
    assert said in refused(folders(TWO | more))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_that_is_cut_short_is_named(
    refused: Refused, folders: Any, tmp_path: Path, split: str, workers: int
) -> None:
    text = folders(TWO).replace("num_workers: 0", f"num_workers: {workers}")
    path = tmp_path / f"data/{split}/b/2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    said = refused(text, begun=True)
    assert str(path) in said and "truncated" in said and "replace the file" in said
    assert "skip_broken" not in said  # a setting of the other half


def test_a_picture_that_is_cut_short_in_a_test(
    command: Command, capsys: pytest.CaptureFixture[str], folders: Any, tmp_path: Path
) -> None:
    text = folders(TWO)
    torch.save({"model": resnet18(num_classes=2).state_dict()}, tmp_path / "w.pth")
    text = text.replace("{num_classes: 2}", f"{{num_classes: 2}}, src_ckpt: {tmp_path / 'w.pth'}")
    assert command(text, "-test_only") == 0
    path = tmp_path / "data/val/b/2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert command(text, "-test_only") == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.slow
def test_a_rehearsal_moves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits with and without it."""
    assert command(ALONE, "--name=with") == 0
    for name in ("rehearse", "rehearse_schedule"):
        monkeypatch.setattr(f"resnet.stages.{name}", lambda *_, **__: None)
    assert command(ALONE, "--name=without") == 0
    own, other = (
        load_file(tmp_path / f"runs/{name}/checkpoints/last.pth") for name in ("with", "without")
    )
    for part in ("model", "optimizer", "lr_scheduler"):
        assert_same_values(own[part], other[part], part)


@pytest.mark.parametrize(
    "key",
    ["ReduceLROnPlateau", pytest.param("CosineAnnealingWarmRestarts", marks=pytest.mark.slow)],
)
def test_schedules_of_epochs_run_to_the_end(command: Command, key: str) -> None:
    kwargs = "T_0: 1" if key.startswith("Cosine") else "patience: 0"
    assert command(changed(SCHEDULE, f"scheduler: {{key: {key}, kwargs: {{{kwargs}}}}}")) == 0


def test_a_schedule_by_accuracy_needs_one_after_every_epoch(refused: Refused) -> None:
    text = changed(SCHEDULE, "scheduler: {key: ReduceLROnPlateau, kwargs: {}}")
    said = refused(changed("run: {log_every: 1}", "run: {evaluate_every: 2}", text))
    assert "leave run.evaluate_every at 1" in said


def test_a_log_that_is_a_folder(command: Command, tmp_path: Path) -> None:
    assert command(ALONE, f"--log={tmp_path}") == 2
    assert not (tmp_path / "runs").exists()
