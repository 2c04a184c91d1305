"""README and docs: generated pages are up to date, both languages agree, and what they point to exists."""

import json
import re

import pytest

from docs import generate
from tests.conftest import ROOT

PAGES = sorted(path for path in (*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")))
CHINESE = [path for path in PAGES if not path.name.endswith(".en.md")]
WORKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md"]
BY_NAME = {"ids": lambda path: path.name}


def anchors(text: str) -> set[str]:
    """Those that GitHub makes of headings: lower case, punctuation removed, dashes for spaces."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", generate.PAGES)
def test_the_options_are_those_of_the_code(name):
    expected = generate.pages()[name]
    assert (generate.FOLDER / name).read_text(encoding="utf-8") == expected, "run: make docs"


def test_no_translation_is_stale():
    used: set[str] = set()
    generate.pages(used)
    assert json.loads(generate.TRANSLATIONS.read_text(encoding="utf-8")).keys() == used


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "README.en.md"], **BY_NAME)
def test_a_readme_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("path", CHINESE, **BY_NAME)
def test_both_languages_have_the_same_parts(path):
    def shape(text: str) -> list[str]:
        fences = re.findall(r"^```(\w*)$", text, re.MULTILINE)
        levels = re.findall(r"^#+ ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
        rows = re.findall(r"^\|", text, re.MULTILINE)
        return [*fences, *levels, str(len(rows))]

    english = path.with_name(path.name.replace(".md", ".en.md"))
    assert shape(path.read_text(encoding="utf-8")) == shape(english.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKING, **BY_NAME)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("path", WORKING, **BY_NAME)
def test_files_that_are_named_exist(path):
    for name in re.findall(r"`((?:tests|benchmarks|bertorch|docs)/[\w./]*)", path.read_text(encoding="utf-8")):
        assert (ROOT / name.rstrip(".")).exists(), name


@pytest.mark.parametrize("path", [ROOT / "docs" / "reliability.md", ROOT / "docs" / "reliability.en.md"], **BY_NAME)
def test_each_promise_has_tests_of_the_name_given(path):
    for row in re.findall(r"^\| .* \| (`tests/.*) \|$", path.read_text(encoding="utf-8"), re.MULTILINE):
        files = [ROOT / name for name in re.findall(r"`(tests/[^`]*)`", row)]
        for part in re.findall(r"`-k ([^`]*)`", row):
            assert any(re.search(rf"def test_\w*{part}", file.read_text(encoding="utf-8")) for file in files), row
