"""What a configuration may name, and that a refused one runs nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchdistill.models import wrapper
from torchvision.models import ResNet34_Weights

from resnet.places import Places
from resnet.recipe import read_recipe
from resnet.trust import Made, built
from srd.errors import UserError
from tests.resnet.hostile import (
    ALLOWED,
    CASE_22,
    CASE_22_FX,
    HOSTILE,
    MISTAKES,
    NESTED,
    PATHS,
    PLAIN,
    RECIPE,
    REST,
    SECTIONS,
)
from tests.resnet.recipes import Command


class Pickled:
    """Unpickling it leaves `OWNED` behind."""

    def __init__(self, proof: Path) -> None:
        self.command = f"touch {proof}"

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a checkpoint, a module and a repository that leave `OWNED` when they run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({"weight": Pickled(tmp_path / "OWNED")}, tmp_path / "evil.pth")
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'OWNED')!r}).touch()\ndef model(): ...\n"
    for name in ("hubconf.py", "evil.py"):
        (tmp_path / name).write_text(code)
    return tmp_path


def write(text: str) -> Path:
    for word, path in (("EVIL", "evil.pth"), ("REPO", ".")):
        text = text.replace(word, str(Path.cwd() / path))
    path = Path("recipe.yaml")
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", ALLOWED)
def test_what_configurations_need_is_allowed(text: str) -> None:
    read_recipe(write(f"run: {{}}\nroot_dir: {text}{REST}"))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_refused_with_their_line_and_nothing_ran(text: str) -> None:
    with pytest.raises(UserError, match=r"^recipe\.yaml, line 2") as caught:
        read_recipe(write(f"run: {{}}\nroot_dir: {text}{REST}"))
    assert str(caught.value).isprintable() and not Path("OWNED").exists()


@pytest.mark.parametrize("text", [CASE_22, CASE_22_FX])
def test_a_hostile_file_ends_the_command_with_two(
    text: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(text) == 2
    assert "--trust-config" in capsys.readouterr().err and not Path("OWNED").exists()
    assert not Path("runs").exists()


def test_a_whole_recipe_is_read() -> None:
    recipe = read_recipe(write(RECIPE))
    assert len(recipe.config["datasets"]["digits/train"]) == 8
    data = recipe.config["datasets"]
    assert data["digits/train"] is data["digits/val"]  # one object for an anchor and its aliases


@pytest.mark.parametrize(("place", "hostile"), SECTIONS)
def test_hostile_sections_are_refused_and_nothing_ran(place: str, hostile: str) -> None:
    assert place in RECIPE
    with pytest.raises(UserError, match=r"^recipe\.yaml, line \d+") as caught:
        read_recipe(write(RECIPE.replace(place, hostile)))
    assert str(caught.value).isprintable() and not Path("OWNED").exists()


@pytest.mark.parametrize(
    "minimal",
    [
        "{auxiliary_model_wrapper: {key: HeadRCNN}}",
        "{auxiliary_model_wrapper: {key: SSWrapper4SSKD, kwargs: {ss_module_ckpt: /etc/x.pt}}}",
        "{sequential: [__init__]}",
    ],
)
def test_a_wrapper_in_a_wrapper_is_held_to_the_same(minimal: str) -> None:
    def recipe(minimal: str) -> Path:
        return write(RECIPE.replace("requires_grad: false", NESTED.replace("MINIMAL", minimal)))

    read_recipe(recipe("{sequential: [conv1, bn1]}"))
    with pytest.raises(UserError, match=r"^recipe\.yaml, line \d+"):
        read_recipe(recipe(minimal))


def test_as_deep_as_a_file_may_be() -> None:
    compose = "!import_call {key: torchvision.transforms.Compose, init: {args: [["
    text = compose * 12 + "!import_call {key: torchvision.transforms.ToTensor}" + "]]}}" * 12
    read_recipe(write(f"run: {{}}\nroot_dir: {text}{REST}"))
    with pytest.raises(UserError, match="line 2: too much"):
        read_recipe(write(f"run: {{}}\nroot_dir: {compose * 12 + text + ']]}}' * 12}{REST}"))


def test_what_an_alias_repeats_is_checked_whole() -> None:
    """PyYAML fills a list after an alias to it was handed on: what is looked at must be all of it."""
    text = "run: {}\nroot_dir: &steps {inner: &list [/etc/passwd]}\ndatasets:\n  a: !import_call {key: "
    text += "torchvision.transforms.Compose, init: {kwargs: {transforms: *list}}}\n"
    with pytest.raises(UserError, match="line 4: transforms cannot be '/etc/passwd'"):
        read_recipe(write(text + "models: {}\ntrain: {}\ntest: {}\n"))


def test_what_an_object_gives_is_checked() -> None:
    """An allowed function whose result is something else, in another version of its package, say."""
    with pytest.raises(UserError, match="gave a module"):
        built({"a": [Made("transform", "x", "here", lambda: os, torch.nn.Module)]}, {})


def test_weights_are_what_torchvision_calls_them() -> None:
    weights = (
        "!getattr [!import_get {key: torchvision.models.resnet.ResNet34_Weights}, IMAGENET1K_V1]"
    )
    place = "kwargs: {num_classes: 10}, src"
    text = RECIPE.replace(place, f"kwargs: {{num_classes: 10, weights: {weights}}}, src")
    model = read_recipe(write(text)).config["models"]["teacher_model"]
    assert model["kwargs"]["weights"] is ResNet34_Weights.IMAGENET1K_V1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "place", ["dst_ckpt: student.pt", "requires_grad: false"], ids=["student", "wrapper"]
)
def test_a_run_writes_where_it_may_and_replaces_checkpoints_only(
    path: str, place: str, here: Path
) -> None:
    Path("keep.pt").write_text("not a checkpoint")
    Path("out").symlink_to(here.parent)
    os.system(
        "python3 -c \"import zipfile; zipfile.ZipFile('archive.pt', 'w').writestr('a', 'b')\""
    )
    new = f"dst_ckpt: {path}"
    if "dst" not in place:
        new = (
            "auxiliary_model_wrapper: {key: SSWrapper4SSKD, kwargs: {input_module: {path: layer4, io: "
            f"output}}, feat_dim: 512, ss_module_ckpt: {path}}}}}"
        )
    with pytest.raises(UserError, match=r"line \d+: .*ckpt (must|would)"):
        read_recipe(write(RECIPE.replace(place, new)))


def test_checkpoints_may_be_replaced_and_output_is_a_place(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    output = tmp_path_factory.mktemp("elsewhere")
    torch.save({"model": {}}, output / "old.pt")
    text = RECIPE.replace("dst_ckpt: student.pt", f"dst_ckpt: {output}/old.pt")
    read_recipe(write(text), output=str(output))
    with pytest.raises(UserError, match="--trust-config"):
        read_recipe(write(text))


def test_data_is_downloaded_into_the_places_only(here: Path) -> None:
    places = Places("runs", data=str(here.parent / "data"))
    assert places.hold("data") and places.hold("runs/data") and places.hold(str(here / "x"))
    assert places.hold(str(here.parent / "data/x"), data=True)
    assert not places.hold(str(here.parent / "data/x")) and not places.hold("/data", data=True)
    text = (
        "!import_call {key: torchvision.datasets.CIFAR10, init: {kwargs: "
        f"{{root: {here.parent}/cifar, download: true}}}}}}"
    )
    with pytest.raises(UserError, match=r"line 2: building .* --data-path only; --trust-config"):
        read_recipe(write(f"run: {{}}\nroot_dir: {text}{REST}"))


def test_every_torch_load_of_this_process_reads_weights_only() -> None:
    read_recipe(write(RECIPE))
    with pytest.raises(
        Exception, match=r"[Ww]eights"
    ):  # as older versions of torchvision ask for it
        torch.load("evil.pth", weights_only=False)
    assert not Path("OWNED").exists()


def test_a_wrappers_own_checkpoint_is_read_as_data_and_written_whole(here: Path) -> None:
    read_recipe(write(RECIPE))
    module = torch.nn.Linear(2, 2)
    wrapper.save_module_ckpt(module, "deep/part.pt")
    other = torch.nn.Linear(2, 2)
    wrapper.load_module_ckpt(other, "cpu", "deep/part.pt")
    assert torch.equal(other.weight, module.weight)
    assert [path.name for path in (here / "deep").iterdir()] == ["part.pt"]
    with pytest.raises(UserError, match=r"evil\.pth"):
        wrapper.load_module_ckpt(other, "cpu", "evil.pth")
    assert not Path("OWNED").exists()


def test_repositories_are_refused() -> None:
    with pytest.raises(UserError, match="repo_or_dir runs a repository's code"):
        read_recipe(write(RECIPE.replace("key: resnet34", "repo_or_dir: a/b, key: x")))


def test_a_trusted_file_may_name_anything() -> None:
    text = "root_dir: !import_call {key: os.path.join, init: {args: [a, b]}}"
    assert read_recipe(write(text + REST), trusted=True).config["root_dir"] == "a/b"
    text = "root_dir: !call_method {obj: a b, method_name: split}"
    assert read_recipe(write(text + REST), trusted=True).config["root_dir"] == ["a", "b"]
    with pytest.raises(UserError, match="line 1: !import_call failed"):
        read_recipe(write("root_dir: !import_call {key: no.such.thing}" + REST), trusted=True)


def test_data_path_takes_the_place_of_root_dir_and_its_aliases() -> None:
    text = "root_dir: &r /old\ndependencies: []\nrun: {}" + REST
    path = write(text.replace("datasets: {}", "datasets: {x: !join [*r, /train]}"))
    assert read_recipe(path, data_path="/new").config["datasets"]["x"] == "/new/train"


@pytest.mark.parametrize("root", ["/old", "!join ['~/', old]"])
def test_data_path_takes_the_place_of_a_data_set_s_root(root: str) -> None:
    """torchdistill's own files have no root_dir, but the `_root` of their first data set."""
    sets = f"{{x: {{_root: &r {root}}}, y: {{here: !join [*r, /val]}}}}"
    path = write("run: {}" + REST.replace("datasets: {}", f"datasets: {sets}"))
    assert read_recipe(path, data_path="/new").config["datasets"]["y"] == {"here": "/new/val"}
    path.write_text(path.read_text().replace("y: {", "y: {_root: other, "))
    with pytest.raises(UserError, match="nor one `_root:`"):
        read_recipe(path, data_path="/new")


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(write(text + REST))


WORDS = [match.span() for match in re.finditer(r"[\w./']+(?=[,\]}\n])", RECIPE)]  # values


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.sampled_from(WORDS), st.sampled_from([*HOSTILE, *PLAIN]) | st.text(max_size=8)
        ),
        min_size=1,
        max_size=2,
    )
)
@settings(
    max_examples=3000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_value_anywhere_is_read_or_refused_and_runs_nothing(
    changes: list[tuple[tuple[int, int], str]],
) -> None:
    text = RECIPE
    for (start, end), new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    before = sorted(os.listdir())
    try:
        read_recipe(write(text))
    except UserError as error:
        assert "\n" not in str(error)
    assert sorted(os.listdir()) in (before, sorted([*before, "recipe.yaml"]))


def test_a_text_that_aliases_join_again_and_again(tmp_path: Path) -> None:
    lines = ["datasets:", f"  a0: &a0 {'x' * 1_000}"]
    lines += [f"  a{n}: &a{n} !join [*a{n - 1}, *a{n - 1}]" for n in range(1, 15)]
    file = tmp_path / "joined.yaml"
    file.write_text("\n".join([*lines, "models: {}", "train: {}", "test: {}"]))
    with pytest.raises(UserError, match="characters in one text"):
        read_recipe(file)
