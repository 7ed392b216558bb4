"""The number of processes is an implementation detail: real torchrun, whole runs, both halves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from deit.student import create_student
from srd.files.checkpoint import load_file, load_weights
from srd.run.log import read_metrics
from srd.training.averaging import RAW
from tests.narrow import narrow
from tests.resnet.recipes import CE, CRITERION, DATA, OURS_LOSS, TEST
from tests.several_processes import perform

ROOT = Path(__file__).resolve().parents[1]
TERMS = ("loss", "ce", "kl", "repr", "lr")
LOSSES = ["srd", "vkd", "dkd", "dist", "crd"]
RESNETS = ["resnet-fp64", "resnet-off"] if find_spec("torchdistill") else []

DEIT = {
    "model": {"name": "tiny", "image_size": 16},
    "data": {"dataset": "digits", "images_per_class": 8, "select_fraction": 0.01, "workers": 0},
    "teacher": {"name": "test_byobnet"},
    "augment": {"rand_augment": "", "mixup": 0.8, "cutmix": 1.0},
    "optim": {"lr": 0.01, "warmup_epochs": 2},
    "train": {"batch_size": 16, "epochs": 4, "evaluate_every": 0, "log_every": 1},
    "device": "cpu",
}
RESNET = """
  num_epochs: 4
  train_data_loader:
    dataset_id: digits/train
    sampler: {class_or_func: !import_get {key: torch.utils.data.RandomSampler}}
    kwargs: {batch_size: 16, num_workers: 0}
  val_data_loader: &val
    dataset_id: digits/val
    sampler: {class_or_func: !import_get {key: torch.utils.data.SequentialSampler}}
    kwargs: {batch_size: 250, num_workers: 0}
  optimizer: {key: SGD, kwargs: {lr: 0.001, momentum: 0.9, weight_decay: 1e-4}}
  scheduler: {key: MultiStepLR, kwargs: {milestones: [3], gamma: 0.1}}
  teacher: {forward_proc: forward_batch_only, forward_hook: {output: [layer3]}, requires_grad: false}
  student:
    auxiliary_model_wrapper:
      key: SimpleRecipeWrapper
      kwargs: {layer: layer3, student_dim: 64, teacher_dim: 64}
    forward_proc: forward_batch_only
    forward_hook: {output: [model.layer3]}
"""
MODELS = """
models:
  teacher_model: {{key: resnet32, kwargs: {{num_classes: 10}}, src_ckpt: {teacher}}}
  student_model: {{key: resnet20, kwargs: {{num_classes: 10}}}}
"""


def write_inputs(folder: Path) -> None:
    """Random teachers, the two recipes, and a random student to evaluate."""
    torch.manual_seed(0)
    teacher = timm.create_model("test_byobnet", num_classes=10)
    torch.save({"model": teacher.state_dict()}, folder / "teacher.pth")
    checkpoint = {"checkpoint": str(folder / "teacher.pth")}
    recipe = {**DEIT, "teacher": {**DEIT["teacher"], **checkpoint}}
    (folder / "deit.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    with narrow(depth=12):
        torch.save(create_student("tiny", 10, 16).state_dict(), folder / "random.pth")
    if RESNETS:
        torch.save({"model": measured_resnet().state_dict()}, folder / "resnet32.pth")
    data = DATA.replace("per_class: 3", "per_class: 8")
    loss = OURS_LOSS.replace("layer4", "layer3")
    text = data + MODELS.format(teacher=folder / "resnet32.pth") + "\ntrain:" + RESNET
    for name in RESNETS:
        amp = f"run: {{log_every: 1, amp: {name.removeprefix('resnet-')}}}"
        test = TEST.replace("run: {log_every: 1}", amp)
        (folder / f"{name}.yaml").write_text(text + CRITERION + CE + loss + test)


def measured_resnet() -> nn.Module:
    """A random ResNet-32 whose running statistics are those of what it sees.

    With others its features hardly vary, and normalising them would amplify every rounding.
    """
    from torchdistill.models.classification.resnet import resnet32

    network = resnet32(num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.rand(64, 3, 32, 32))
    return network


def torchrun(folder: Path, processes: int, *actions: str, restarts: int = 0) -> None:
    """`actions` of several_processes.py on that many processes that meet over gloo."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--max-restarts={restarts}",
         f"--nproc-per-node={processes}", ROOT / "tests" / "several_processes.py", folder, *actions],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


LOSSES_IN_PARTS = [f"parts-{loss}" for loss in LOSSES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes and one make, in float64."""
    path = tmp_path_factory.mktemp("processes")
    write_inputs(path)
    both = ["deit-fp64", "step", *LOSSES_IN_PARTS[:1], "evaluate"]
    torchrun(path, 2, *both, "deit-local", "stop-2to1@12")
    perform(path, [*both, "end-2to1"])
    return path


@pytest.fixture(scope="module")
def every(folder: Path) -> Path:
    """Beside these, in float32, and what four processes make (and three evaluate)."""
    in_float32, rest = ["deit-off", *RESNETS[1:]], [*RESNETS[:1], *LOSSES_IN_PARTS[1:]]
    torchrun(folder, 2, *in_float32, *rest, "stop-2to4to1@12")
    torchrun(folder, 4, "deit-fp64", "step", *RESNETS[:1], *in_float32, "stop-2to4to1@16")
    torchrun(folder, 1, *in_float32, *rest, "end-2to4to1")
    torchrun(folder, 3, "evaluate")
    return folder


def steps(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_metrics(folder / name / "metrics.jsonl", "step")


def worst(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """By term, the largest relative difference of any step."""
    assert len(ours) == len(theirs) == 20
    pairs = list(zip(ours, theirs, strict=True))
    return {term: max(abs(a[term] - b[term]) / abs(b[term]) for a, b in pairs) for term in TERMS}


def relative(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The relative difference of two sets of weights, as one vector."""
    assert list(ours) == list(theirs)
    pairs = [(ours[k].double(), theirs[k].double()) for k in theirs]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return (difference / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def test_two_processes_make_the_same_student(folder: Path) -> None:
    assert_the_same_student(folder, "deit-fp64", 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "processes"),
    [
        ("deit-off", 2),
        *((run, 2) for run in RESNETS[:1]),
        *((run, 4) for run in ("deit-fp64", "deit-off", *RESNETS[:1])),
    ],
)
def test_any_number_of_processes_makes_the_same_student(
    every: Path, run: str, processes: int
) -> None:
    assert_the_same_student(every, run, processes)


def assert_the_same_student(folder: Path, run: str, processes: int) -> None:
    bound = 1e-9 if run.endswith("fp64") else 1e-4
    alone, together = steps(folder, f"{run}_1"), steps(folder, f"{run}_{processes}")
    assert alone[-1]["loss"] < alone[0]["loss"]
    differences = worst(together, alone)
    assert max(differences.values()) < bound, differences
    students = [load_weights(folder / f"{run}_{n}/student.safetensors") for n in (processes, 1)]
    assert relative(*students) < bound


@pytest.mark.slow
@pytest.mark.skipif(not RESNETS, reason="needs torchdistill")
@pytest.mark.parametrize("processes", [2, 4])
def test_in_float32_processes_differ_no_more_than_rounding(every: Path, processes: int) -> None:
    """A ResNet in float32 now and then has a value on the other side of a ReLU.

    That moves the gradient of a small batch by a thousandth, on one process as on several: so the
    yardstick is how far one process in float32 is from itself in float64.
    """
    alone = steps(every, "resnet-off_1")
    rounding = worst(alone, steps(every, "resnet-fp64_1"))
    together = worst(steps(every, f"resnet-off_{processes}"), alone)
    first = steps(every, f"resnet-off_{processes}")[0]
    assert first["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)
    assert max(together.values()) < 1e-4 + 5 * max(rounding.values()), (together, rounding)


def test_the_first_gradients_are_the_same(folder: Path) -> None:
    assert_the_same_gradients(folder, 2)


@pytest.mark.slow
def test_the_first_gradients_on_four_processes_are_the_same(every: Path) -> None:
    assert_the_same_gradients(every, 4)


def assert_the_same_gradients(folder: Path, processes: int) -> None:
    """After one step AdamW's first moment is a tenth of the (clipped) gradient."""
    moments = []
    for n in (processes, 1):
        state = load_file(folder / f"step_{n}/checkpoints/last.pth")["optimizer"]["state"]
        moments.append({str(k): v["exp_avg"] for k, v in state.items()})
        assert all(float(v["step"]) == 1 for v in state.values())
    assert len(moments[1]) > 100 and relative(*moments) < 1e-13
    together, alone = (moment for moment in moments)
    largest = max(float(v.abs().max()) for v in alone.values())
    for name, value in alone.items():
        assert (together[name] - value).abs().max() < 1e-13 * largest, name


def test_micro_batches_on_two_processes_train_as_whole_batches_on_one(folder: Path) -> None:
    assert_the_same_in_parts(folder, LOSSES[0])


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES[1:])
def test_other_losses_in_micro_batches_on_two_processes(every: Path, loss: str) -> None:
    assert_the_same_in_parts(every, loss)


def assert_the_same_in_parts(folder: Path, loss: str) -> None:
    """8 images a process, 3 at a time, of a student without batch norms."""
    alone, together = steps(folder, f"parts-{loss}_1"), steps(folder, f"parts-{loss}_2")
    assert len(alone) == len(together) == 5
    for ours, theirs in zip(together, alone, strict=True):
        assert set(ours) == set(theirs)
        for term in (*(term for term in TERMS if term in ours), "grad_norm"):
            assert ours[term] == pytest.approx(theirs[term], rel=1e-12), term
    two, one = (load_file(folder / f"parts-{loss}_{n}/checkpoints/last.pth") for n in (2, 1))
    for weights in ("model", RAW):  # the moving average, and what is trained
        assert relative(two[weights], one[weights]) < 1e-12


def test_statistics_of_each_process_are_another_run(folder: Path) -> None:
    """The setting that brings the old behaviour back does; and so the comparison can fail."""
    local = worst(steps(folder, "deit-local_2"), steps(folder, "deit-fp64_1"))
    assert local["repr"] > 1e-3 and local["lr"] == 0


def test_a_run_moves_from_two_processes_to_one(folder: Path) -> None:
    """Stopped by a signal to one process only; the next number of processes goes on."""
    assert_moved(folder, "2to1", updates=[13])


@pytest.mark.slow
def test_a_run_moves_from_two_processes_to_four_to_one(every: Path) -> None:
    assert_moved(every, "2to4to1", updates=[13, 17])


def assert_moved(folder: Path, name: str, updates: list[int]) -> None:
    assert max(worst(steps(folder, name), steps(folder, "deit-fp64_1")).values()) < 1e-9
    students = [
        load_weights(folder / f"{run}/student.safetensors") for run in (name, "deit-fp64_1")
    ]
    assert relative(*students) < 1e-9
    assert json.loads((folder / f"{name}/result.json").read_text())["processes"] == 1
    log = (folder / f"{name}/log.txt").read_text()
    assert all(f"({made} updates made)" in log for made in updates)


def test_accuracy_is_that_of_every_image_once(folder: Path) -> None:
    assert_the_same_accuracy(folder, 2)


@pytest.mark.slow
def test_accuracy_where_processes_do_not_divide_the_images(every: Path) -> None:
    assert_the_same_accuracy(every, 3)


def assert_the_same_accuracy(folder: Path, processes: int) -> None:
    alone, together = (
        json.loads((folder / f"accuracy_{n}.json").read_text()) for n in (1, processes)
    )
    assert alone["images"] == 500
    assert {**together, "loss": 0} == {**alone, "loss": 0}
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_killed_process_comes_back_and_the_run_goes_on(folder: Path) -> None:
    """torchrun --max-restarts: from the last step saved, although the command says --resume none."""
    torchrun(folder, 2, "die@12", restarts=1)
    assert json.loads((folder / "lives.json").read_text()) == 2
    assert "(10 updates made)" in (folder / "died/log.txt").read_text()
    assert steps(folder, "died")[-1]["step"] == steps(folder, "deit-fp64_2")[-1]["step"] > 12
    ours, theirs = (
        load_weights(folder / f"{run}/student.safetensors") for run in ("died", "deit-fp64_2")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
