"""Studies: what is exchanged, what is selected by what, and what a page says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from srd.commands import study as command
from srd.config.fields import Config
from srd.config.layers import Layer, read_yaml
from srd.errors import UserError
from srd.run.folder import RunFolder
from srd.study.results import half_interval, page, spread, table
from srd.study.runs import Budget, Runs
from srd.study.studies import (
    CNN,
    STUDIES,
    TRANSFORMER,
    Study,
    as_published,
    logits_alone,
    paper,
    student_alone,
    views,
    with_teachers,
)
from srd.study.tested import Tested, read_tested
from srd.study.tested import measured as of_checkpoint
from srd.training.teaching import teacher_recipe
from tests.conftest import TEACHER

SMALL = Study(
    question="Does it run?",
    source="no table",
    variants=(student_alone(), paper("linear")),
)
CURVES = replace(SMALL, shows="effective_rank", over_epochs=True, runs_of="small")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, narrow: None) -> None:
    monkeypatch.setitem(STUDIES, "small", SMALL)
    monkeypatch.setitem(STUDIES, "curves", CURVES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_is_a_configuration(name: str, recipe: Path, tmp_path: Path) -> None:
    shared = [Layer(str(recipe), read_yaml(recipe))]
    budget = Budget(seeds=(0,), search=True, layers=[Layer("", {"output": str(tmp_path)})])
    runs = Runs(name, STUDIES[name], shared, budget)
    runs.check()
    variants = STUDIES[name].variants
    labels = [variant.label for variant in variants]
    assert len(set(labels)) == len(labels) and "alone" in labels
    searches = [variant.search for variant in variants if variant.search is not None]
    assert {len(search.factors) for search in searches} == (set() if name == "views" else {3})
    assert name == "views" or {v.label for v in variants if v.search is None} <= {"kd"}


def test_a_study_from_the_command_to_its_page(
    small: None,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["small", f"--config={recipe}", f"--output={tmp_path}", "--seeds=0", "--quick",
                 "--epochs=1", "--warmup-epochs=0"]  # fmt: skip
    command.run(arguments)
    numbers = json.loads((tmp_path / "small/small.json").read_text())
    assert list(numbers) == ["alone", "linear (the paper)"]
    alone, linear = (numbers[label][0] for label in numbers)
    assert alone["images"] == 500 and alone["effective_rank"] is None
    assert 1 < linear["effective_rank"] <= 24  # of a student 24 wide
    assert alone["chosen"] is None is linear["chosen"], "nothing was searched"
    page = (tmp_path / "small/small.md").read_text()
    assert "One seed" in page and "Mean ±" not in page
    assert SMALL.question in page and "srd study small" in page and "| alone |" in page
    assert (tmp_path / "small/small.png").stat().st_size > 5000
    run = RunFolder(tmp_path, "shared/paper_seed0")
    held_out = run.read_result()
    assert held_out is not None and held_out["images"] != 500
    before = run.last.stat().st_mtime_ns
    command.run(arguments)
    assert run.last.stat().st_mtime_ns == before, "what is there is taken up"
    layers = [
        Layer("", {"output": str(tmp_path), "train": {"epochs": 1}, "optim": {"warmup_epochs": 0}})
    ]
    budget = Budget(seeds=(0,), search=True, layers=layers)
    search = Runs("small", SMALL, [Layer(str(recipe), read_yaml(recipe))], budget)
    assert search.test(SMALL.variants[1], 1.0, 0).chosen == 1.0, "it is also a searched variant's"
    assert "small.md" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "teacher_caches").iterdir()] == ["test_byobnet_seed0"]
    assert linear["history"]["effective_rank"] == [linear["effective_rank"]]
    assert linear["shift_error"] is None, "only the study of shifts measures them"
    command.run(["curves", *arguments[1:]])
    assert run.last.stat().st_mtime_ns == before, "another study looks at the same runs"
    looked_at: list[str] = []

    def measured(config: Config, file: Path) -> Any:
        looked_at.append(file.name)
        return of_checkpoint(config, file)

    monkeypatch.setattr("srd.study.runs.measured", measured)
    for best, files in (0, ["last.pth"]), (-1, ["last.pth", "best.pth"]):
        run.result.write_text(json.dumps({**held_out, "best_epoch": best}))
        (run.path / "tested.json").unlink()
        looked_at.clear()
        command.run(arguments)
        assert looked_at == files, "the selected epoch's weights, where it is not the last"
    curves = (tmp_path / "curves/curves.md").read_text()
    assert "effective rank of P" in curves and (tmp_path / "curves/curves.png").is_file()
    with pytest.raises(
        UserError, match=r"alone_seed0 was trained with other settings \(train\.epochs"
    ):
        command.run([*arguments[:-2], "--epochs=2", "--warmup-epochs=0"])
    with pytest.raises(UserError, match=r"other settings \(train\.evaluate_every"):
        command.run([*arguments, "--set=train.evaluate_every=2"])
    other = tmp_path / "other.pth"
    torch.manual_seed(1)
    torch.save({"model": timm.create_model(TEACHER, num_classes=10).state_dict()}, other)
    with pytest.raises(
        UserError, match=r"paper_seed0 .* \(the teacher's SHA-256: \w{8} -> \w{8}\)"
    ):
        command.run([*arguments, f"--teacher-checkpoint={other}"])


@pytest.mark.slow
def test_a_setting_is_searched_on_what_is_held_out(
    small: None, recipe: Path, tmp_path: Path
) -> None:
    layers = [
        Layer("", {"output": str(tmp_path), "train": {"epochs": 1}, "optim": {"warmup_epochs": 0}})
    ]
    shared = [Layer(str(recipe), read_yaml(recipe))]
    runs = Runs("small", SMALL, shared, Budget(seeds=(0,), search=True, layers=layers))
    variant = SMALL.variants[1]
    best = runs.searched(variant)
    assert variant.search is not None
    scores = {
        factor: runs.held_out(runs.trained(variant, factor, 1000)[1])
        for factor in variant.search.factors
    }
    assert scores[best] == max(scores.values())
    (tested,) = [runs.test(variant, best, 0)]
    assert tested.chosen == best * 1.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["normalization"], "unknown study 'normalization' (did you mean 'normalisation'?)"),
        (["alpha", "--seeds=1,x"], "expected whole numbers"),
        (["alpha", "--seeds=1,1"], "expected different numbers"),
        (["alpha", "--seeds="], "expected whole numbers"),
        (["alpha", "--seeds=1_0"], "expected whole numbers"),
        (["alpha", "--seeds=-1"], "expected whole numbers from 0"),
        (["alpha", f"--seeds={','.join(map(str, range(101)))}"], "100 at most"),
        (["alpha", "--seed=1"], "unknown argument --seed (did you mean '--seeds'?)"),
        (["alpha", "--epochs=0"], "train.epochs"),
        (["alpha", "--set=optim.lr=-1"], "optim.lr"),
        (["alpha", "--cnn=resnet18=x"], "--cnn resnet18=x: has no effect in this study"),
        (["equivariance", "--cnn=resnet18"], "expected NAME=FILE"),
        (["equivariance", "--config=configs/own.yaml"], "--cnn NAME=FILE --transformer NAME=FILE"),
        (["alpha", "--set=cache.path=x"], "cache.path has no effect, the study sets it"),
        (["alpha", "--set=seed=3"], "seed has no effect, the study sets it"),
        (["alpha", "--set=train.keep_best=false"], "train.keep_best has no effect"),
        (["alpha", "--set=slim=true"], "slim has no effect"),
        (["equivariance", "--teacher=resnet18"], "--teacher: teacher.name has no effect in this"),
        (["alpha", "--seeds=0,1000"], "1000 is the search's own"),
        (["list", "--quick"], "takes nothing else"),
        (["equivariance", "--cnn=resnet10t=not/there"], "not/there"),
        (["equivariance", "--cnn=resnet10u=not/there"], "resnet10u"),
        (["alpha", "--set=data.select_fraction=null"], "choose on the images that it reports"),
        (["alpha", "--set=distill.alpha=3"], "distill.alpha has no effect"),
    ],
)
def test_wrong_input(arguments: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        command.run([*arguments, f"--output={tmp_path}"])
    assert told in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{}", "[" * 100_000, '{"seed": 1' + "0" * 400 + "}", "3"])
def test_what_stands_in_a_tested_file_is_checked(tmp_path: Path, text: str) -> None:
    (tmp_path / "tested.json").write_text(text)
    with pytest.raises(UserError, match=r"tested\.json is damaged"):
        read_tested(tmp_path / "tested.json")


def test_the_interval_is_students() -> None:
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert half_interval([1.0]) is None
    assert spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0 (-0.5 to 4.5)"


def test_a_table_shows_what_was_chosen() -> None:
    run = Tested(seed=0, selected=50, last=40, held_out=60, best_epoch=3, effective_rank=None,
                 chosen=0.25, seconds=1, images=10)  # fmt: skip
    better = [replace(run, last=41), replace(run, seed=1, selected=52, last=44)]
    other = [replace(run, last=40), replace(run, seed=1, last=42)]
    results = [(SMALL.variants[0], other), (SMALL.variants[1], better), (logits_alone(), [*other])]
    first, row, last = table(SMALL, results).splitlines()[-3:]
    assert row.startswith("| linear (the paper) | 51.0 ± 1.4 (")
    assert row.endswith("| +1.5 ± 0.7 (-4.9 to +7.9) |  | distill.repr_weight 0.25 | 2 |")
    assert "| +0.0 ± 0.0 (+0.0 to +0.0) |" in first and "| +" not in last  # the control itself


def test_a_rival_is_also_run_as_published(recipe: Path, tmp_path: Path) -> None:
    shared = [Layer(str(recipe), read_yaml(recipe)), Layer("", {"output": str(tmp_path)})]
    runs = Runs("rivals", STUDIES["rivals"], shared, Budget(seeds=(0,), search=True))
    for variant in (v for v in STUDIES["rivals"].variants if v.has_authors):
        plain = as_published(variant)
        (config, folder), (searched, other) = (runs.planned(v, 1.0, 0) for v in (plain, variant))
        assert config == searched and folder.path == other.path, "a run of the search"
        assert plain.label == f"{variant.label.split(' (')[0]} (published)"
        assert runs.rows(variant, 4.0) == [(variant, 4.0), (plain, 1.0)]
        assert runs.rows(variant, 1.0) == [(variant, 1.0)], "it is the published one"
    for variant in (v for v in STUDIES["rivals"].variants if not v.has_authors):
        assert runs.rows(variant, 4.0) == [(variant, 4.0)]
    others = Runs("alpha", STUDIES["alpha"], shared, Budget(seeds=(0,), search=True))
    assert len(others.rows(STUDIES["alpha"].variants[-1], 4.0)) == 1
    run = Tested(seed=0, selected=50, last=40, held_out=60, best_epoch=3, effective_rank=None,
                 chosen=None, seconds=1, images=10)  # fmt: skip
    head, _, row = table(STUDIES["rivals"], [(STUDIES["rivals"].variants[1], [run])]).splitlines()
    assert "| reported by others: CIFAR-100, " in head and row.endswith("|  |  | 73.3 | 1 |")


def test_a_weight_of_the_configuration_is_of_those_whose_loss_reads_it(
    recipe: Path, tmp_path: Path
) -> None:
    shared = [Layer(str(recipe), read_yaml(recipe)), Layer("", {"output": str(tmp_path)})]
    shared.append(Layer("", {"distill": {"kl_weight": 3.0, "repr_weight": 2.0}}))
    runs = Runs("rivals", STUDIES["rivals"], shared, Budget(seeds=(0,), search=True))
    runs.check()
    weights = {}
    for variant in STUDIES["rivals"].variants:
        own = runs.planned(variant, 1.0, 0)[0].distill
        weights[own.loss.name] = (own.kl_weight, own.repr_weight)
    assert weights["none"] == (1, 1) and weights["kd"] == (3, 1) and weights["dkd"] == (1, 2)
    assert weights["ablation"] == weights["crd"] == (3, 2)


def test_a_teacher_is_not_chosen_on_what_is_reported(recipe: Path, tmp_path: Path) -> None:
    layers = [Layer("", {"output": str(tmp_path)})]
    own = [Layer(str(recipe), read_yaml(recipe))]
    variant = STUDIES["equivariance"].variants[1]
    runs = Runs(
        "equivariance",
        STUDIES["equivariance"],
        own,
        Budget(seeds=(0,), search=False, layers=layers),
    )
    config, _ = runs.planned(variant, 1.0, 0)
    found = teacher_recipe(config)
    assert found is not None and found[0].data.select_fraction == 0.01
    assert found[0].name == "digits_teacher"


def test_views_that_would_not_come_again_are_left_out(recipe: Path, tmp_path: Path) -> None:
    study = replace(SMALL, variants=(student_alone(), *map(views, (1, 2, 3, None))))
    shared = [Layer(str(recipe), read_yaml(recipe)), Layer("", {"output": str(tmp_path)})]
    runs = Runs("views", study, shared, Budget(seeds=(0,), search=True))
    runs.check()
    assert runs.base.train.epochs == 2
    repeats = [v.settings.get("cache.epochs") for v in runs.variants() if v.is_taught]
    assert repeats == [1, None]
    places = {str(runs.planned(v, 1.0, 0)[0].cache.path) for v in runs.variants()[1:]}
    assert len(places) == 2, "views that come again have a cache of their own"


def test_teachers_of_ones_own() -> None:
    study = with_teachers(STUDIES["equivariance"], {CNN: ("resnet10t", "runs/mine")})
    mine = next(variant.settings for variant in study.variants if variant.label == CNN)
    assert mine["teacher.name"] == "resnet10t" and mine["teacher.checkpoint"] == "runs/mine"
    assert mine["teacher.recipe"] is None


def test_two_teachers_of_one_name_have_caches_of_their_own(recipe: Path, tmp_path: Path) -> None:
    places = {CNN: ("resnet10t", "runs/a"), TRANSFORMER: ("resnet10t", "runs/b")}
    study = with_teachers(STUDIES["equivariance"], places)
    shared = [Layer(str(recipe), read_yaml(recipe)), Layer("", {"output": str(tmp_path)})]
    runs = Runs("equivariance", study, shared, Budget(seeds=(0,), search=True))
    assert len({runs.planned(v, 1.0, 0)[0].cache.path for v in study.variants[1:]}) == 2


def test_a_study_without_a_projector_is_of_equal_widths(recipe: Path, tmp_path: Path) -> None:
    shared = [Layer(str(recipe), read_yaml(recipe)), Layer("", {"output": str(tmp_path)})]
    labels = {}
    for student in (TEACHER, "test_vit"):
        layers = [*shared, Layer("", {"model": {"name": student, "image_size": 160}})]
        runs = Runs("projector", STUDIES["projector"], layers, Budget(seeds=(0,), search=True))
        labels[student] = [variant.label for variant in runs.variants()]
    assert "none" in labels[TEACHER] and "none" not in labels["test_vit"]
    assert len(labels[TEACHER]) == len(labels["test_vit"]) + 1
    assert runs.teachers() == TEACHER


def test_a_measure_of_all_is_compared_too() -> None:
    study = STUDIES["equivariance"]
    run = Tested(seed=0, selected=50, last=40, held_out=60, best_epoch=3, effective_rank=None,
                 chosen=None, seconds=1, images=10, shift_error=0.5, same_class=90)  # fmt: skip
    alone = [run, replace(run, seed=1, shift_error=0.6)]
    taught = [replace(run, shift_error=0.4), replace(run, seed=1, shift_error=0.45)]
    head, _, first, second = table(
        study, [*zip(study.variants[:2], (alone, taught), strict=True)]
    ).splitlines()
    assert "what a shift changes in the features | that over alone's |" in head
    assert "| 0.550 ± 0.071 (-0.085 to 1.185) |  |" in first
    assert "| 0.425 ± 0.035 (0.107 to 0.743) | -0.125 ± 0.035 (-0.443 to +0.193) |" in second


def test_shared_runs_count_once_and_commits_are_those_that_trained() -> None:
    run = Tested(seed=0, selected=50, last=40, held_out=60, best_epoch=3, effective_rank=None,
                 chosen=None, seconds=100, images=10, commit="abc")  # fmt: skip
    kd, searched = logits_alone(), SMALL.variants[1]
    results = [(kd, [run]), (searched, [replace(run, chosen=1.0)])]
    about = {"versions": {"torch": "2"}, "git_commit": "of the page"}
    text = page(
        "name", SMALL, results, command="srd", data="", made_with=about, picture="", search=True
    )
    assert "in 100 s of training" in text and "commit abc." in text


def test_a_quick_study_has_a_place_of_its_own(recipe: Path) -> None:
    shared, own = [Layer(str(recipe), read_yaml(recipe))], [Layer("", {"output": "mine"})]
    (output, epochs, warmup) = (layer.values for layer in command.quick(shared, []))
    assert output == {"output": "runs/quick"} and epochs == {"train": {"epochs": 1}}
    assert [layer.values for layer in command.quick(shared, own)] == [epochs, warmup]
    own = [Layer("", {"output": "mine", "optim": {"warmup_epochs": 0.5}})]
    assert [layer.values for layer in command.quick(shared, own)] == [epochs], (
        "what is given counts"
    )
