"""The page: whole, harmless whatever names are in it, and what a real browser shows of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from srd.report.groups import fold
from srd.report.page import make_page
from srd.report.runs import find_runs
from tests.report.made import write_run, write_told

pytest.importorskip("matplotlib")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "<script>document.title='struck'</script><img src=x onerror=alert(1)>\"'$x_1$\x1b[31m\u202e"


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of five runs, one with a thousand classes, one with names that try to be more."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1, 2):
        folder = write_run(
            root / f"distilled_seed{seed}", [50.0, 60.0 + seed, 70.0], projector=True,
            settings={"seed": seed}, agreement=88.0 + seed,
        )  # fmt: skip
    write_told(folder, ["cat", EVIL, "dog"])
    many = write_run(root / "$many$", [10.0, 20.0], finished=False, settings={"model.name": EVIL})
    write_told(many, [f"n{number:08}" for number in range(1000)], images=3000, teacher=False)
    (root / "report.html").write_text(make_page(fold(find_runs([root])), f"Runs {EVIL}"))
    return root / "report.html"


def test_it_holds_everything_and_fetches_nothing(page: Path) -> None:
    reader = Tags()
    reader.feed(page.read_text())
    names = [name for name, _ in reader.tags]
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(names)
    for name, values in reader.tags:
        assert not [key for key in values if key.startswith("on")], (name, values)
        for key in ("src", "srcset", "href"):
            assert (values.get(key) or "data:image/").startswith("data:image/"), (name, key)
    shown = page.read_text()
    assert "&lt;script&gt;" in shown and r"\x1b[31m\u202e" in shown and "\x1b" not in shown
    assert shown.count("<figure>") == 8 + 16 and shown.count("<picture>") == 8
    assert "1000 classes: the worst 20" not in shown and "classes: the worst 20" in shown
    assert "The 20 most confused classes" in shown and "Student and teacher" in shown


def test_a_page_of_one_run_that_has_just_begun(tmp_path: Path) -> None:
    write_run(tmp_path / "one", [10.0], finished=False)
    shown = make_page(fold(find_runs([tmp_path])), "One")
    assert "1 run in 1 group;" in shown and "Classes and pictures" not in shown


def browse(page: Path, *flags: str) -> str:
    """What Chromium prints, headless."""
    profile = page.parent / "profile"
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    done = subprocess.run(
        [*command, f"--user-data-dir={profile}", *flags, page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium)")
def test_a_browser_shows_it(page: Path) -> None:
    tree = browse(page, "--dump-dom")
    assert re.search(r"<title>Runs &lt;script&gt;", tree)  # nothing in it has run
    for name, flags, dark in (
        ("light.png", ["--window-size=1280,1600"], False),
        ("dark.png", ["--window-size=500,1600", "--blink-settings=preferredColorScheme=0"], True),
    ):
        shot = page.with_name(name)
        browse(page, f"--screenshot={shot}", *flags)
        with Image.open(shot) as picture:
            pixels = picture.convert("L")
            assert (pixels.getpixel((2, 2)) < 60) == dark
            assert len(pixels.getcolors()) > 100  # curves and letters are drawn
            right = pixels.crop((pixels.width - 4, 0, pixels.width, pixels.height))
            assert len(right.getcolors()) == 1  # nothing sticks out
