"""The pages lead to what exists: links, anchors, files, modules; and the first one stays short."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT, anchors, prose

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# `code` that names a file or a module of this project
FILE = re.compile(r"(?<![\w/.-])((?:srd|deit|resnet|scripts|tests|configs|docs)/[\w./-]*\w)")
MODULE = re.compile(r"(?<![\w./-])((?:srd|deit|resnet)(?:\.\w+)+)")
CODE = re.compile(r"`([^`\n]+)`")
FORMER = {"srd.distill", "srd.checkpoint"}  # what the changelog says has moved


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{label(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{label(page)}: {link}"


def exists(module: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    *parents, name = module.split(".")
    try:
        if find_spec(module) is not None:
            return True
    except ModuleNotFoundError:
        pass
    try:
        spec = find_spec(".".join(parents))
    except ModuleNotFoundError:
        return False
    text = Path(spec.origin).read_text() if spec is not None and spec.origin else ""
    return re.search(rf"^(?:def|class) {name}\b|^{name}\b|^    \"{name}\":", text, re.M) is not None


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_files_and_modules_are_todays(page: Path) -> None:
    for code in CODE.findall(prose(page)):
        for file in FILE.findall(code):
            assert list(ROOT.glob(file)), f"{label(page)}: {file}"
        for module in MODULE.findall(code):
            if not (ROOT / module).exists() and module not in FORMER:  # deit.yaml is no module
                assert exists(module), f"{label(page)}: {module}"


def test_every_page_is_reached_from_the_readme() -> None:
    seen, new = set(), [ROOT / "README.md"]
    while new:
        page = new.pop()
        seen.add(page)
        links = [page.parent / link.partition("#")[0] for link in LINK.findall(page.read_text())]
        new += [p for link in links if (p := link.resolve()).suffix == ".md" and p not in seen]
    assert set(PAGES) <= seen


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 750


def test_the_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    assert {"message", "title", "authors", "version"} <= set(citation)
    assert {"type", "title", "authors", "year"} <= set(paper)
    text = (ROOT / "README.md").read_text()
    for said in (paper["title"], str(paper["year"]), paper["authors"][0]["family-names"]):
        assert said in text
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", changes, re.M)[0] == citation["version"]
