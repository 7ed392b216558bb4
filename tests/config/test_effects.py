"""What is given by hand has an effect on what is done, or is refused."""

from __future__ import annotations

import pytest

from srd.config.effects import IDLE, OF_TEACHER, READ, TOLD, Doing, configure
from srd.config.fields import Config
from srd.config.layers import Layer, dotted_keys, nested
from srd.errors import UserError

KEYS = list(dotted_keys(Config, {"distill": {"loss": {"name": "srd"}}}))


@pytest.mark.parametrize("doing", IDLE)
def test_what_is_listed_are_settings(doing: Doing) -> None:
    for prefix in (*IDLE[doing], *READ, *TOLD, OF_TEACHER):
        assert any(key.startswith(prefix) for key in KEYS), prefix


@pytest.mark.parametrize(
    ("doing", "key", "value"),
    [
        ("teacher", "distill.loss.name", "vkd"),
        ("teacher", "model.name", "tiny"),
        ("teacher", "teacher.mean", [0.5, 0.5, 0.5]),
        ("evaluation", "model.init", "pretrained"),
        ("evaluation", "optim.lr", 0.1),
        ("evaluation", "train.epochs", 2),
        ("evaluation", "resume", "none"),
    ],
)
def test_without_effect_it_is_refused_by_hand_and_may_stand_in_a_file(
    doing: Doing, key: str, value: object
) -> None:
    layer = Layer("--flag", nested(key, value))
    with pytest.raises(UserError, match=f"--flag: {key} has no effect where"):
        configure([], [layer], doing)
    configure([layer], [], doing)
    configure([], [layer], "student")


@pytest.mark.parametrize(
    ("field", "recipe"), [("name", None), ("checkpoint", None), ("mean", "teacher.yaml")]
)
def test_a_teacher_given_by_hand_wins_over_a_files_recipe(field: str, recipe: str | None) -> None:
    shared = [Layer("file", {"teacher": {"recipe": "teacher.yaml"}})]
    value = [0.5, 0.5, 0.5] if field == "mean" else "resnet18"
    given = [Layer("--teacher", {"teacher": {field: value}})]
    assert configure(shared, given, "student").teacher.recipe == recipe
    both = [*given, Layer("--set", {"teacher": {"recipe": "mine.yaml"}})]
    if field == "checkpoint":
        with pytest.raises(UserError, match=r"teacher\.recipe has no effect beside"):
            configure(shared, both, "student")
    else:
        assert configure(shared, both, "student").teacher.recipe == "mine.yaml"


def test_a_checkpoint_for_a_teacher_that_is_trained_is_where_it_starts() -> None:
    given = [Layer("--teacher-checkpoint", {"teacher": {"checkpoint": "t.pth"}})]
    assert configure([], given, "teacher").model.init == "t.pth"
    assert configure(given, [], "teacher").model.init is None  # a file's is its student's
    assert configure([], given, "student").model.init is None
    with pytest.raises(UserError, match="leave one out"):
        configure([], [*given, Layer("--init", {"model": {"init": "t.pth"}})], "teacher")


def test_what_everything_reads() -> None:
    for doing in IDLE:
        given = [Layer("--batch-size", {"train": {"batch_size": 8}})]
        assert configure([], given, doing).train.batch_size == 8


def test_a_run_has_the_name_of_what_is_trained() -> None:
    assert configure([], [], "student").name == "deit_tiny_srd"
    assert configure([], [], "teacher").name == "teacher_regnety_160.deit_in1k"
    assert configure([], [Layer("", {"name": "mine"})], "student").name == "mine"
    assert configure([], [], "evaluation").name is None


IDLE_IN_EVALUATION = {"seed": 3, "output": "x", "name": "x", "teacher.name": "resnet18",
                      "data.images_per_class": 3}  # fmt: skip


@pytest.mark.parametrize("key, value", IDLE_IN_EVALUATION.items())
def test_what_an_evaluation_does_not_read_is_told(
    capsys: pytest.CaptureFixture[str], key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [Layer("--flag", nested(key, value))]
    configure([], given, "evaluation")
    told = capsys.readouterr().err
    assert told.startswith(f"warning: --flag: {key} has no effect in an evaluation")
    assert told.count("\n") == 1
    monkeypatch.setenv("RANK", "1")
    configure([], given, "evaluation")  # the first process has said it
    monkeypatch.delenv("RANK")
    configure(given, [], "evaluation")  # a file may say what it likes
    configure([], given, "student")
    measured = Layer("--set", {"teacher": {"evaluate": True}})
    configure([], [measured, *(given if "teacher" in key else ())], "evaluation")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("epochs", "expected"), [(300, 20), (40, 20), (39, 2.6), (10, 0.67)])
def test_a_warm_up_that_nobody_set_leaves_half_the_run(epochs: int, expected: float) -> None:
    given = [Layer("--epochs", {"train": {"epochs": epochs}})]
    for layers in ((given, []), ([], given)):
        assert configure(*layers, "student").optim.warmup_epochs == expected


@pytest.mark.parametrize("place", [0, 1])
def test_a_warm_up_that_was_set_stays_and_must_be_shorter_than_the_run(place: int) -> None:
    def warmed(warmup: float) -> float:
        layers: list[list[Layer]] = [[Layer("file", {"train": {"epochs": 10}})], []]
        layers[place].append(Layer("", {"optim": {"warmup_epochs": warmup}}))
        return configure(*layers, "student").optim.warmup_epochs

    assert warmed(9.5) == 9.5
    for warmup in (10, 11):
        with pytest.raises(UserError, match=r"as the run of 10 epochs.*--warmup-epochs 0\.67"):
            warmed(warmup)


def test_a_files_warm_up_keeps_its_share_of_a_run_that_flags_make_shorter() -> None:
    file = [Layer("file", {"optim": {"warmup_epochs": 80}, "train": {"epochs": 100}})]
    for epochs, expected in ((81, 80), (80, 64), (5, 4)):
        given = [Layer("--epochs", {"train": {"epochs": epochs}})]
        assert configure(file, given, "student").optim.warmup_epochs == expected


@pytest.mark.parametrize(
    "key, value, other",
    [
        ("color_jitter", 0.1, {}),
        ("erase_count", 2, {"erase": 0.0}),
        ("mix_probability", 0.5, {"mixup": 0.0, "cutmix": 0.0}),
        ("mix_switch", 0.1, {"cutmix": 0.0}),
    ],
)
def test_what_another_setting_keeps_idle_is_refused_by_hand(
    key: str, value: float, other: dict[str, float]
) -> None:
    shared = [Layer("file", {"augment": {key: value, **other}})]
    assert configure(shared, [], "student")  # of a file that several runs share
    with pytest.raises(UserError, match=rf"here: augment\.{key} has no effect with.* leave it out"):
        configure(shared, [Layer("here", {"augment": {key: value}})], "student")
