"""What a run leaves, for every way to train; and that its checkpoint measures what it reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.regnet import RegNet

from deit import main
from deit.student import create_student
from srd.config.layers import read_yaml
from srd.evaluation.of_checkpoint import evaluate_checkpoint
from srd.files.checkpoint import load_file, load_weights, sha256

STEPS, EPOCHS = 6, 2
CONTRACT = {
    "step": {"kind", "epoch", "step", "loss", "ce", "kl", "repr", "lr", "grad_norm"}
    | {"images_per_second"},
    "epoch": {"kind", "epoch", "step", "loss", "ce", "kl", "repr", "lr", "images_per_second"},
    "eval": {"kind", "epoch", "step", "acc1", "acc5", "loss", "images"},
}
WHOLE = "--set=data.select_fraction=null"
BESIDE = {"agreement", "correlation", "effective_rank", "singular_values"}  # of evaluations


@pytest.fixture(scope="module")
def distilled(
    tmp_path_factory: pytest.TempPathFactory, recipe: Path, open_run: Callable[[Path], Any]
) -> Any:
    """The recipe on a student of the true size, measured on all digits: trained once, for many tests."""
    output = tmp_path_factory.mktemp("distilled")
    command = ["--train-student", f"--config={recipe}", f"--output={output}", "--model=tiny"]
    main.run([*command, WHOLE])
    return open_run(output / "digits_deit_tiny_srd")


def test_metrics_have_the_rows_of_the_contract(distilled: Any) -> None:
    lines = (distilled.path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) - BESIDE == CONTRACT[row["kind"]] for row in rows)
    assert set(distilled.rows("eval")[-1]) >= BESIDE
    steps = distilled.rows("step")
    assert [(row["epoch"], row["step"]) for row in steps] == [
        (step // STEPS, step) for step in range(STEPS * EPOCHS)
    ]
    for row in steps:
        assert row["loss"] == pytest.approx(row["ce"] + row["kl"] + row["repr"], rel=1e-6)
    assert [row["epoch"] for row in distilled.rows("eval")] == [0, 1]
    assert all(row["images"] == 500 for row in distilled.rows("eval"))


def test_an_epochs_row_has_the_means_of_its_steps(distilled: Any) -> None:
    steps = distilled.rows("step")
    for row in distilled.rows("epoch"):
        own = [step for step in steps if step["epoch"] == row["epoch"]]
        for term in ("loss", "ce", "kl", "repr"):
            assert row[term] == pytest.approx(sum(step[term] for step in own) / STEPS, rel=1e-6)


def test_the_learning_rate_warms_up_and_falls(distilled: Any) -> None:
    rates = [row["lr"] for row in distilled.rows("step")]
    assert rates[0] == pytest.approx(5e-7 * 10 / 512)
    assert rates[:STEPS] == sorted(rates[:STEPS])
    assert rates[STEPS:] == sorted(rates[STEPS:], reverse=True)
    assert max(rates) <= 0.01 * 10 / 512


def test_the_folder_is_the_contracts(distilled: Any) -> None:
    assert {path.name for path in distilled.path.iterdir()} == {
        "config.yaml", "log.txt", "metrics.jsonl", "tensorboard", "checkpoints",
        "student.safetensors", "result.json", "predictions.json",
    }  # fmt: skip
    names = {path.name for path in distilled.checkpoints.iterdir()}
    assert names == {"last.pth", "last.1.pth", "best.pth"}
    assert any((distilled.path / "tensorboard").iterdir())


def test_a_checkpoint_holds_student_and_projector_and_no_teacher(distilled: Any) -> None:
    model = distilled.state()["model"]
    student = create_student("tiny", num_classes=10, image_size=16).state_dict()
    assert [name for name in model if not name.startswith("distillation_loss.")] == list(student)
    projector = {name for name in model if name.startswith("distillation_loss.")}
    assert {"distillation_loss.embed.weight", "distillation_loss.bn_t.running_mean"} < projector
    assert len(projector) == 8 and model["distillation_loss.embed.weight"].shape == (256, 192)


def test_the_projector_and_both_statistics_move_in_training(distilled: Any) -> None:
    model = distilled.state()["model"]
    exp_avg = [entry["exp_avg"] for entry in distilled.state()["optimizer"]["state"].values()]
    assert any(value.shape == (256, 192) and value.abs().max() > 0 for value in exp_avg)
    for side in ("bn_s", "bn_t"):
        assert model[f"distillation_loss.{side}.num_batches_tracked"] == STEPS * EPOCHS
        assert model[f"distillation_loss.{side}.running_mean"].abs().max() > 0


def test_student_safetensors_is_the_best_student_alone(distilled: Any) -> None:
    weights = load_weights(distilled.path / "student.safetensors")
    student = create_student("tiny", num_classes=10, image_size=16)
    student.load_state_dict(weights)  # strict: no projector, no prefix
    best = distilled.state("best.pth")["model"]
    assert all(torch.equal(best[name], value) for name, value in weights.items())


def test_result_says_what_was_run_and_what_came_out(distilled: Any, random_teacher: Path) -> None:
    result, evals = distilled.result(), distilled.rows("eval")
    best = max(evals, key=lambda row: row["acc1"])
    assert result["acc1"] == evals[-1]["acc1"] and result["loss"] == evals[-1]["loss"]
    assert (result["best_acc1"], result["best_epoch"]) == (best["acc1"], best["epoch"])
    assert result["images"] == 500 and result["train_images"] == 60
    assert result["epochs"] == EPOCHS and result["updates"] == STEPS * EPOCHS
    assert result["model"] == "deit_tiny" and result["method"] == "srd"
    assert result["teacher"] == "test_byobnet" and result["dataset"] == "digits"
    assert result["teacher_sha256"] == sha256(random_teacher)
    assert result["seconds"] > 0 and result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "git_commit" in result and result["num_classes"] == 10


def test_the_log_says_where_things_are(distilled: Any) -> None:
    lines = (distilled.path / "log.txt").read_text().splitlines()
    assert f"acc1 {distilled.result()['acc1']:.2f}" in lines[-1]
    assert str(distilled.path) in lines[-1]
    assert any("teacher test_byobnet" in line and "SHA-256" in line for line in lines)


@pytest.mark.parametrize("file", ["checkpoints/best.pth", "student.safetensors"])
def test_evaluation_prints_the_accuracy_that_training_reported(
    distilled: Any, recipe: Path, deit: Any, file: str
) -> None:
    weights = f"--checkpoint={distilled.path / file}"
    shown = deit("--model=tiny", f"--config={recipe}", weights, WHOLE)
    best = max(distilled.rows("eval"), key=lambda row: row["acc1"])
    assert shown.code == 0
    assert f"acc1 {best['acc1']:.2f}  acc5 {best['acc5']:.2f}" in shown.out
    assert f"loss {best['loss']:.4f}" in shown.out and "500 images" in shown.out


def test_a_runs_folder_is_evaluated_with_its_own_settings(distilled: Any, deit: Any) -> None:
    shown = deit(f"--checkpoint={distilled.path}")
    best = max(distilled.rows("eval"), key=lambda row: row["acc1"])
    assert shown.code == 0 and f"acc1 {best['acc1']:.2f}" in shown.out


def test_evaluation_does_not_depend_on_the_batch(distilled: Any, recipe: Path) -> None:
    best = max(distilled.rows("eval"), key=lambda row: row["acc1"])
    config = main.configure(
        main.make_parser().parse_args([f"--config={recipe}", "--set=data.eval_batch_size=7", WHOLE])
    )
    accuracy = evaluate_checkpoint(config, str(distilled.checkpoints / "best.pth"))
    assert (accuracy.acc1, accuracy.acc5) == (best["acc1"], best["acc5"])
    assert accuracy.loss == pytest.approx(best["loss"], rel=1e-5)


def test_the_saved_configuration_runs_again_to_the_same_bits(
    distilled: Any, tmp_path: Path, deit: Any, open_run: Any
) -> None:
    again = deit("--train_student", f"--config={distilled.path / 'config.yaml'}",
                 f"--output={tmp_path}", "--name=again")  # fmt: skip
    assert again.code == 0
    open_run(tmp_path / "again").assert_same(distilled)


def test_the_saved_configuration_is_the_resolved_one(distilled: Any) -> None:
    saved = read_yaml(distilled.path / "config.yaml")
    assert saved["train"]["batch_size"] == 10 and saved["optim"]["weight_decay"] == 0.05
    assert saved["name"] == "digits_deit_tiny_srd"
    assert load_file(distilled.checkpoints / "last.pth")["config"]["train"] == saved["train"]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("method", "terms"),
    [("kd", {"loss", "ce", "kl"}), ("none", {"loss", "ce"})],
)
def test_the_baselines_train(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, method: str, terms: set[str]
) -> None:
    done = deit("--train_student", f"--config={recipe}", f"--output={tmp_path}", "--epochs=1",
                f"--distillation={method}")  # fmt: skip
    assert done.code == 0
    run = open_run(tmp_path / f"digits_deit_tiny_{method}")
    own = CONTRACT["step"] - {"ce", "kl", "repr", "images_per_second"} | terms
    assert all(set(row) == own for row in run.rows("step"))
    assert run.result()["method"] == method
    assert run.result()["teacher"] == ("test_byobnet" if method == "kd" else None)
    assert not any("distillation_loss" in name for name in run.state()["model"])


@pytest.mark.usefixtures("narrow")
def test_alone_needs_no_teacher(tmp_path: Path, recipe: Path, deit: Any) -> None:
    done = deit("--train_student", f"--config={recipe}", f"--output={tmp_path}", "--epochs=1",
                "--distillation=none", "--teacher-checkpoint=nowhere.pth")  # fmt: skip
    assert done.code == 0


@pytest.mark.usefixtures("narrow")
def test_a_teacher_is_trained_and_teaches(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any
) -> None:
    """Its own normalisation is recorded with it and used when it teaches."""
    trained = deit("--train_teacher", f"--config={recipe}", f"--output={tmp_path}", "--epochs=1",
                   "--name=teacher", "--set=data.mean=[0.1,0.2,0.3]")  # fmt: skip
    assert trained.code == 0
    run = open_run(tmp_path / "teacher")
    evaluated = deit(f"--checkpoint={run.path}")
    assert evaluated.code == 0 and f"acc1 {run.result()['best_acc1']:.2f}" in evaluated.out
    assert run.result()["trained"] == "teacher" and run.result()["model"] == "test_byobnet"
    assert set(run.rows("step")[0]) == CONTRACT["step"] - {"kl", "repr", "images_per_second"}
    model = timm.create_model("test_byobnet", num_classes=10)
    model.load_state_dict(load_weights(run.path / "student.safetensors"))
    file = run.checkpoints / "best.pth"
    done = deit("--train_student", f"--config={recipe}", f"--output={tmp_path}", "--epochs=1",
                "--name=student", f"--teacher-checkpoint={file}",
                "--set=teacher.evaluate=true")  # fmt: skip
    assert done.code == 0
    rows = open_run(tmp_path / "student").rows("eval")
    assert rows[0].pop("model") == "teacher"
    reported = run.rows("eval")[0]
    # The same images, whatever mean the student's are normalised with.
    assert rows[0]["acc1"] == pytest.approx(reported["acc1"], abs=0.21)
    assert rows[0]["loss"] == pytest.approx(reported["loss"], rel=1e-4)
    assert f"teacher test_byobnet  acc1 {rows[0]['acc1']:.2f}" in done.err


@pytest.mark.usefixtures("narrow")
def test_a_teacher_with_a_recipe_is_trained_first_once(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any
) -> None:
    settings = json.loads(recipe.read_text()) | {"name": "small_teacher"}
    settings["teacher"] = {"name": "test_byobnet"}
    settings["train"]["epochs"], settings["optim"]["warmup_epochs"] = 1, 0
    (tmp_path / "teacher.yaml").write_text(json.dumps(settings))
    settings["teacher"]["recipe"] = str(tmp_path / "teacher.yaml")
    (tmp_path / "student.yaml").write_text(json.dumps(settings | {"name": "student"}))
    command = ("--train_student", f"--config={tmp_path / 'student.yaml'}", f"--output={tmp_path}")
    first = deit(*command)
    assert first.code == 0 and "first the teacher" in first.out
    teacher = open_run(tmp_path / "small_teacher")
    digest = open_run(tmp_path / "student").result()["teacher_sha256"]
    assert digest == sha256(teacher.checkpoints / "best.pth")
    second = deit(*command, "--name=second")
    assert second.code == 0 and "first the teacher" not in second.out
    assert open_run(tmp_path / "second").result()["teacher_sha256"] == digest


@pytest.mark.usefixtures("narrow")
def test_a_folder_of_images_trains_and_small_images_grow(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, make_jpegs: Any
) -> None:
    classes = {f"{split}/{name}": n for split, n in (("train", 6), ("val", 3)) for name in "abc"}
    images = make_jpegs(tmp_path / "images", classes)
    done = deit("--train_student", f"--config={recipe}", "--dataset=imagefolder", "--epochs=1",
                f"--data-path={images}", "--set=data.images_per_class=null", WHOLE,
                f"--output={tmp_path}", "--name=run", "--distillation=none")  # fmt: skip
    assert done.code == 0
    result = open_run(tmp_path / "run").result()
    assert result["num_classes"] == 3 and result["train_images"] == 18 and result["images"] == 9
    assert result["updates"] == 1 and result["acc5"] == 100


@pytest.mark.usefixtures("narrow")
def test_a_broken_image_is_skipped_and_counted_when_asked(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, make_jpegs: Any
) -> None:
    images = make_jpegs(tmp_path / "images", {"train/a": 6, "train/b": 6, "val/a": 3, "val/b": 3})
    broken = [images / "train" / "a" / "1.jpg", images / "val" / "b" / "2.jpg"]
    for file in broken:
        file.write_bytes(file.read_bytes()[:50])
    command = ("--train_student", f"--config={recipe}", "--dataset=imagefolder", "--epochs=2",
               f"--data-path={images}", "--set=data.images_per_class=null", WHOLE, "--batch-size=12",
               f"--output={tmp_path}", "--name=run", "--distillation=none")  # fmt: skip
    stopped = deit(*command)
    assert stopped.code == 2 and str(broken[0]) in stopped.err
    assert "data.skip_broken" in stopped.err
    done = deit(*command, "--resume=none", "--set=data.skip_broken=true")
    assert done.code == 0 and f"skipped {broken[0]}" in done.err
    result = open_run(tmp_path / "run").result()
    assert result["skipped_files"] == 2 and result["images"] == 5 and result["updates"] == 2


@pytest.mark.usefixtures("narrow")
def test_the_advice_to_skip_a_file_does_not_make_another_recipe(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, make_jpegs: Any, strike: Any
) -> None:
    images = make_jpegs(tmp_path / "images", {"train/a": 6, "train/b": 6, "val/a": 3, "val/b": 3})
    command = ("--train_student", f"--config={recipe}", "--dataset=imagefolder", "--epochs=2",
               f"--data-path={images}", "--set=data.images_per_class=null", WHOLE, "--batch-size=12",
               f"--output={tmp_path}", "--name=run", "--distillation=none")  # fmt: skip
    strike(lambda: (images / "val/b/2.jpg").write_bytes(b""), 1)  # in the second epoch
    assert deit(*command).code == 2
    done = deit(*command, "--set=data.skip_broken=true")
    assert done.code == 0 and "updates made" in (tmp_path / "run/log.txt").read_text()
    assert open_run(tmp_path / "run").result()["skipped_files"] == 1


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("term", ["kl", "repr"])
def test_a_loss_that_is_nan_stops_the_run_and_leaves_the_last_checkpoint(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, monkeypatch: pytest.MonkeyPatch,
    term: str,
) -> None:  # fmt: skip
    from srd.training.task import DistillationTask

    losses, calls = DistillationTask.losses, []

    def poisoned(self: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        found = losses(self, *arguments)
        calls.append(1)
        bad = found[term] * float("nan")
        return found | {term: bad, "loss": found["loss"] + bad} if len(calls) == 9 else found

    command = ("--train_student", f"--config={recipe}", f"--output={tmp_path}", "--name=run")
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTask, "losses", poisoned)
        failed = deit(*command)
    assert failed.code == 1 and "Traceback" not in failed.err
    assert f"{term} is nan" in failed.err and "step 8" in failed.err and "epoch 1" in failed.err
    run = open_run(tmp_path / "run")
    assert run.state()["position"]["updates"] == STEPS
    assert all(value.isfinite().all() for value in run.state()["model"].values())
    assert not (run.path / "result.json").exists()
    assert deit(*command).code == 0  # and it can go on from there


@pytest.mark.usefixtures("narrow")
def test_a_teacher_stays_as_it_was_through_training(
    tmp_path: Path, recipe: Path, random_teacher: Path, deit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from srd.training import cached_teacher as training

    opened, open_teacher = [], training.open_teacher

    def remember(*arguments: Any, **named: Any) -> Any:
        opened.append(open_teacher(*arguments, **named))
        return opened[-1]

    monkeypatch.setattr(training, "open_teacher", remember)
    done = deit("--train_student", f"--config={recipe}", f"--output={tmp_path}")
    assert done.code == 0
    (teacher,) = opened
    weights = load_weights(random_teacher)
    assert any(name.endswith("running_mean") for name in weights)
    for name, value in teacher.model.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not any(module.training for module in teacher.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())


@pytest.mark.usefixtures("narrow")
def test_intervals_of_saving_evaluating_and_logging(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any
) -> None:
    done = deit("--train_student", f"--config={recipe}", f"--output={tmp_path}", "--name=run",
                "--distillation=none", "--epochs=3", "--set=train.evaluate_every=2",
                "--set=train.keep_every=2", "--set=train.log_every=4")  # fmt: skip
    assert done.code == 0
    run = open_run(tmp_path / "run")
    assert [row["epoch"] for row in run.rows("eval")] == [1, 2]
    assert [row["step"] for row in run.rows("step")] == [0, 4, 8, 12, 16]
    assert {p.name for p in run.checkpoints.iterdir()} == {
        "last.pth", "last.1.pth", "best.pth", "epoch_0001.pth",
    }  # fmt: skip


@pytest.mark.usefixtures("narrow")
def test_a_run_in_micro_batches_has_the_same_losses(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any
) -> None:
    """One micro-batch of the whole batch: smaller ones change the stem's batch norms."""
    command = ("--train_student", f"--config={recipe}", f"--output={tmp_path}", "--epochs=1")
    assert deit(*command, "--name=whole").code == 0
    assert deit(*command, "--name=micro", "--set=train.micro_batch=10").code == 0
    rows = [open_run(tmp_path / name).rows("step") for name in ("whole", "micro")]
    for whole, micro in zip(*rows, strict=True):
        assert micro["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert deit(*command, "--name=small", "--set=train.micro_batch=4").code == 0


@pytest.mark.usefixtures("narrow")
def test_a_released_checkpoint_is_evaluated(
    tmp_path: Path, recipe: Path, deit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrapped names, a projector beside, and a pickled yacs configuration; found in ckpts/."""
    from yacs.config import CfgNode

    student = create_student("tiny", num_classes=10, image_size=16)
    weights = {f"module.{name}": value for name, value in student.state_dict().items()}
    weights["module.distillation_loss.embed.weight"] = torch.zeros(3024, 192)
    released = {"model": weights, "optimizer": {}, "epoch": 299, "config": CfgNode({"A": 1})}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpts" / "deit_tiny").mkdir(parents=True)
    torch.save(released, tmp_path / "ckpts" / "deit_tiny" / "ckpt_epoch_299.pth")
    shown = deit("--model=tiny", f"--config={recipe}")
    assert shown.code == 0 and "acc1" in shown.out and "ckpt_epoch_299.pth" in shown.out
    (tmp_path / "ckpts" / "deit_tiny" / "ckpt_epoch_299.pth").rename(
        tmp_path / "ckpts" / "ckpt_epoch_299.pth"
    )
    again = deit("--model=tiny", f"--config={recipe}").out
    assert again.split(" (")[0] == shown.out.replace("deit_tiny/", "").split(" (")[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "small"])
def test_the_papers_command_on_jpegs_at_224_pixels(
    tmp_path: Path, deit: Any, open_run: Any, make_jpegs: Any, model: str
) -> None:
    """RegNetY-160 with random weights from a file, RandAugment and all: two steps of four."""
    classes = {f"{split}/{name}": 4 for split in ("train", "val") for name in ("n01440764", "n02")}
    images = make_jpegs(tmp_path / "imagenet", classes, size=(300, 260))
    torch.manual_seed(0)
    teacher = timm.create_model("regnety_160", num_classes=2)
    assert isinstance(teacher, RegNet)
    torch.save({"model": teacher.state_dict()}, tmp_path / "regnety_160.pth")
    done = deit("--model", model, "--train_student", "--data-path", images, "--batch-size", 4,
                "--epochs", 1, "--workers", 2, "--teacher", "regnety_160", "--output", tmp_path,
                "--teacher-checkpoint", tmp_path / "regnety_160.pth", "--name", "run",
                "--set", "train.log_every=1")  # fmt: skip
    assert done.code == 0, done.err
    run = open_run(tmp_path / "run")
    assert [row["step"] for row in run.rows("step")] == [0, 1]
    assert run.state()["model"]["distillation_loss.embed.weight"].shape[0] == 3024
    assert run.result()["images"] == 8
