"""--unlabelled: features, and logits where they fit, are what teaches; a head comes later, by --init."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from deit import main
from srd.commands import cache, export, predict
from srd.errors import UserError
from srd.files.checkpoint import load_file, load_weights
from tests.conftest import TEACHER
from tests.narrow import narrow

pytestmark = pytest.mark.usefixtures("narrow")
SHORT = ("--epochs=2", "--batch-size=8", "--workers=0", "--image-size=32", "--lr=0.01",
         "--warmup-epochs=0", "--set=augment.rand_augment=", "--set=train.log_every=1")  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, make_jpegs: Callable[..., Path]) -> Path:
    """Pictures, some in folders."""
    return make_jpegs(tmp_path_factory.mktemp("pictures"), {".": 12, "trip/one": 6, "trip/two": 6})


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a teacher without a head."""
    file = tmp_path_factory.mktemp("headless") / "teacher.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(TEACHER, num_classes=0).state_dict(), file)
    return file


def command(pictures: Path, output: Path, teacher: Path, *more: str) -> list[str]:
    return ["--train_student", "--unlabelled", f"--data-path={pictures}", f"--output={output}",
            "--name=run", f"--teacher={TEACHER}", f"--teacher-checkpoint={teacher}", *SHORT,
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def backbone(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, headless: Path, open_run: Any
) -> Any:
    """A run that learned features alone."""
    output = tmp_path_factory.mktemp("backbone")
    with narrow():
        main.run(command(pictures, output, headless))
    return open_run(output / "run")


def test_features_alone_teach_a_student_without_a_head(backbone: Any) -> None:
    assert (
        set(backbone.rows("step")[0]) >= {"loss", "repr"} and "ce" not in backbone.rows("step")[0]
    )
    assert "kl" not in backbone.rows("step")[0]
    for row in backbone.rows("eval"):
        own = set(row) - {"correlation", "effective_rank", "singular_values"}
        assert own == {"kind", "epoch", "step", "distance", "cosine", "repr", "images"}
        assert row["distance"] == pytest.approx(1 - row["cosine"]) and -1 <= row["cosine"] <= 1
        assert row["images"] == 2
    result = backbone.result()
    rows = backbone.rows("eval")
    assert result["num_classes"] == 0 and "acc1" not in result
    assert result["best_distance"] == pytest.approx(min(row["distance"] for row in rows))
    assert result["distance"] == rows[-1]["distance"]
    log = (backbone.path / "log.txt").read_text()
    assert "no labels" in log and "features alone" in log and "done in" in log
    assert f"feature distance {result['distance']:.4f}" in log.splitlines()[-1]
    assert "2 of 24 training images are held out, 10% (data.val_fraction)" in log
    assert not any("head" in name for name in load_weights(backbone.path / "student.safetensors"))


def test_a_finished_run_is_known(backbone: Any, pictures: Path, headless: Path, deit: Any) -> None:
    again = deit(*command(pictures, backbone.path.parent, headless))
    assert again.code == 0 and "already finished: distance" in again.out


def test_a_run_that_stops_goes_on_to_the_same_bits(
    backbone: Any,
    pictures: Path,
    headless: Path,
    tmp_path: Path,
    deit: Any,
    strike: Any,
    open_run: Any,
) -> None:
    strike(lambda: os.kill(os.getpid(), signal.SIGTERM), 3)
    again = command(pictures, tmp_path, headless)
    assert deit(*again).code == 143 and deit(*again).code == 0
    open_run(tmp_path / "run").assert_same(backbone)


def test_a_teacher_cache_is_filled_and_replayed(
    backbone: Any, pictures: Path, headless: Path, tmp_path: Path, deit: Any, open_run: Any
) -> None:
    """By the same flags, so also with the preset that few pictures get."""
    where = (f"--teacher-cache={tmp_path / 'cache'}", "--set=cache.dtype=float32")
    asked = command(pictures, tmp_path, headless, *where)
    cache.run(["fill", *asked[1:]])
    told = deit(*asked)
    assert told.code == 0 and "4 of 4 steps are there" in told.err
    open_run(tmp_path / "run").assert_same(backbone)


@pytest.mark.parametrize("loss", ["srd", "vkd", "kd", "dist", "fitnet"])
def test_logits_teach_where_the_teacher_has_them(
    pictures: Path, random_teacher: Path, tmp_path: Path, deit: Any, open_run: Any, loss: str
) -> None:
    told = deit(*command(pictures, tmp_path, random_teacher, f"--distillation={loss}"))
    assert told.code == 0, told.err
    run = open_run(tmp_path / "run")
    step, row = run.rows("step")[0], run.rows("eval")[-1]
    assert ("kl" in step) == (loss != "dist") and ("repr" in step) == (loss != "kd")
    assert 0 <= row["agreement"] <= 100 and row["kl"] >= 0
    assert ("cosine" in row) == (loss in ("srd", "vkd")) and ("repr" in row) == (loss != "kd")
    assert run.result()["best_distance"] == pytest.approx(
        min(row["distance"] for row in run.rows("eval")), abs=1e-6
    )
    assert run.result()["num_classes"] == 10
    assert load_weights(run.path / "student.safetensors")["head_conv.weight"].shape[0] == 10


def test_any_timm_student_and_a_val_folder(
    make_jpegs: Any, headless: Path, tmp_path: Path, deit: Any, open_run: Any
) -> None:
    data = make_jpegs(tmp_path / "data", {"train/deep/er": 16, "val": 3})
    told = deit(*command(data, tmp_path, headless, "--model=test_resnet"))
    assert told.code == 0, told.err
    assert open_run(tmp_path / "run").rows("eval")[-1]["images"] == 3


@pytest.fixture
def labelled(make_jpegs: Any, tmp_path: Path) -> Path:
    return make_jpegs(
        tmp_path / "labelled", {f"{part}/{c}": 8 for part in ("train", "val") for c in "ab"}
    )


@pytest.mark.parametrize("frozen", [True, False], ids=["linear probe", "fine-tuning"])
def test_a_head_is_put_on_it(
    backbone: Any, labelled: Path, tmp_path: Path, deit: Any, open_run: Any, frozen: bool
) -> None:
    more = ("--set=model.freeze_backbone=true",) if frozen else ()
    told = deit("--train_student", f"--data-path={labelled}", f"--output={tmp_path}", "--name=run",
                f"--init={backbone.path}", "--distillation=none", *SHORT, *more)  # fmt: skip
    assert told.code == 0, told.err
    assert "a new head (head, head_conv)" in told.err
    run = open_run(tmp_path / "run")
    before = load_weights(backbone.path / "student.safetensors")
    after = load_file(run.checkpoints / "last.pth")["model"]
    same = [torch.equal(after[name], value) for name, value in before.items()]
    assert all(same) if frozen else not any(same[:1])
    assert "acc1" in run.result()


@pytest.mark.slow
def test_the_backbone_is_exported_and_predicts_nothing(
    backbone: Any, pictures: Path, tmp_path: Path
) -> None:

    out = str(tmp_path / "out")
    export.run([str(backbone.path), "--output", out, "--format", "timm", "onnx"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_classes"] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "image-feature-extraction" in card and "without a head" in card
    assert f"{backbone.result()['best_distance']:.4f} from the teacher's on 2 pictures" in card
    for place in (out, f"{out}/model.onnx"):
        with pytest.raises(UserError, match="no classes to predict"):
            predict.run([place, str(next(pictures.glob("*.jpg")))])


@pytest.mark.parametrize(
    "more, named",
    [
        (["--distillation=none"], "labels alone"),
        (["--distillation=kd"], "no logits"),
        (["--distillation=dkd"], "needs targets"),
        (["--distillation=crd"], "needs keys"),
        (["--set=augment.label_smoothing=0.2"], "augment.label_smoothing has no effect"),
        (["--set=distill.ce_weight=0"], "distill.ce_weight has no effect"),
        (["--set=data.images_per_class=2"], "data.images_per_class has no effect"),
        (["--set=teacher.recipe=configs/digits/teacher.yaml", "--set=teacher.checkpoint=null"],
         "from labels"),
        (["--set=model.freeze_backbone=true"], "--distillation none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_makes_no_sense_is_refused(
    pictures: Path, headless: Path, tmp_path: Path, deit: Any, more: list[str], named: str
) -> None:
    refused = deit(*command(pictures, tmp_path, headless, *more))
    assert refused.code == 2 and named in refused.err and "Traceback" not in refused.err
    assert not (tmp_path / "run").exists()


def test_an_evaluation_needs_labels(backbone: Any, deit: Any) -> None:
    refused = deit(f"--checkpoint={backbone.path}")
    assert refused.code == 2 and "no labels" in refused.err
    refused = deit("--train_teacher", "--unlabelled", f"--teacher={TEACHER}", "--dataset=digits")
    assert refused.code == 2 and "data.unlabelled has no effect" in refused.err


def test_no_pictures(tmp_path: Path, headless: Path, deit: Any) -> None:
    (tmp_path / "empty").mkdir()
    refused = deit(*command(tmp_path / "empty", tmp_path, headless))
    assert refused.code == 2 and "no pictures below" in refused.err
