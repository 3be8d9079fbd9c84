"""The documents hold together: sizes, links, pages made from the code, messages and errors that they explain."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from docs_tools import tool

from cmapkd_core.exits import ENDS

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md"), *(REPOSITORY / "k8s").rglob("*.md")])
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(document: Path) -> str:
    """A document without its blocks of code, whose brackets are no links."""
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The names of its headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFKD", title.lower())).strip() for title in titles]
    return {re.sub(r"\s+", "-", one) for one in words}


def dead(document: Path) -> Iterator[str]:
    """Links to files of the repository that are not there, or to headings that are not in them."""
    for target in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        if not file.exists() or (heading and heading not in anchors(file)):
            yield target


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 120]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(document: Path) -> None:
    assert not list(dead(document))


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading, here\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md) [b](gone.md) [c](there.md#a-heading-here) [d](there.md#no) [e](https://x.org/y)\n")
    assert list(dead(page)) == ["gone.md", "there.md#no"]


def test_every_page_can_be_reached_by_the_menu_of_the_site() -> None:
    menu = set(
        re.findall(r"^ +- .*: (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    )
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - {"index.md"}
    decisions = {page for page in pages if page.startswith("decisions/0")}
    assert menu == (pages - decisions) | {*tool("site_pages").PAGES} | {"index.md"}
    listed = (DOCS / "decisions/README.md").read_text(encoding="utf-8")
    assert not [page for page in decisions if f"({Path(page).name})" not in listed]


def test_links_are_rewritten_for_the_site() -> None:
    rewritten = tool("site_pages").rewritten
    assert rewritten("[a](../../k8s/README.md) [b](gpus.md#one)", "howto/cluster.md") == (
        "[a](../k8s/README.md) [b](gpus.md#one)"
    )
    assert rewritten("[a](docs/zh.md) [b](LICENSE)", "CONTRIBUTING.md") == "[a](zh.md) b"
    assert rewritten("[a](../docs/howto/gpus.md)", "k8s/README.md") == "[a](../howto/gpus.md)"
    assert rewritten("[a](https://x.org/y) ![f](../figures/f.svg)", "howto/gpus.md") == (
        "[a](https://x.org/y) ![f](../figures/f.svg)"
    )


def test_a_number_keeps_its_interval_on_the_site() -> None:
    row = "| a ± b | 11.8 ± 0.7 | -0.9 [-1.9 to +0.2] (-2.0 to +0.4) | 2 to 3 (1 to 2 up) | **0.1 [0.1 to 0.4]** |"
    kept = "| a ± b | 11.8_±_0.7 | -0.9 [-1.9_to_+0.2] (-2.0_to_+0.4) | 2 to 3 (1 to 2 up) | **0.1 [0.1_to_0.4]** |"
    text = "A line of 3 ± 1 words [1 to 2]\n\n"
    assert tool("site_pages").whole_numbers(text + row) == text + kept.replace("_", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize("name", ["fields", "recipes", "commands", "python"])
def test_a_page_made_from_the_code_is_up_to_date(name: str) -> None:
    made = tool("reference_pages").MAKERS[name]().rstrip() + "\n"
    assert (DOCS / f"reference/{name}.md").read_text(encoding="utf-8") == made, "python docs/tools/reference_pages.py"


def test_the_drawings_are_up_to_date() -> None:
    for name, draw in tool("diagrams").DRAWINGS.items():
        kept = (DOCS / f"figures/{name}.svg").read_text(encoding="utf-8")
        assert kept == draw(), "python docs/tools/diagrams.py"


def test_the_drawing_of_the_demo_has_the_numbers_of_its_page() -> None:
    page = (DOCS / "tutorial/demo.md").read_text(encoding="utf-8")
    for _, to_text, to_image, _ in tool("diagrams").DEMO:
        assert re.search(rf"/ {to_text}, \S+ \| .*/ {to_image}, ", page)


# ---- what the page on troubleshooting explains ----------------------------------------------------

TROUBLE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TROUBLE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@cache
def trees() -> list[ast.Module]:
    files = [path for folder in ("cmapkd_core", "cmapkd") for path in (REPOSITORY / folder).rglob("*.py")]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in files]


def errors_of_the_code() -> set[str]:
    """Classes of exceptions that people may read the name of: those below Exception, whatever the way."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    raised = re.compile(r"\w*(Error|Exception)$")
    found: set[str] = set()
    while new := {
        name for name, of in bases.items() if name not in found and any(b in found or raised.match(b) for b in of)
    }:
        found |= new
    return {name for name in found if not name.startswith("_")}


def test_every_error_is_explained() -> None:
    told = set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]*) \|", section("By the name of an error"), re.M)))
    )
    assert told - {"Interrupted"} == errors_of_the_code() - {"Interrupted"}
    assert "Interrupted" in told


def test_every_exit_code_is_explained() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| .+ \|$", section("By exit code"), re.MULTILINE)
    assert rows == [(str(end.code), name) for name, end in ENDS.items() if name != "done"]


@cache
def texts() -> list[str]:
    """The strings of the code, with `..` where a value is filled in."""
    found = []
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else ".." for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def says(text: str, parts: list[str]) -> bool:
    """Whether a string of the code has these parts one behind the other."""
    place = 0
    for part in parts:
        place = text.find(part, place) + len(part)
        if place < len(part):
            return False
    return True


def test_every_message_that_is_explained_is_one_of_the_code() -> None:
    messages = re.findall(r"^\| `(.+?)` \|", section("By message"), re.MULTILINE)
    assert len(messages) > 30
    assert not [one for one in messages if not any(says(text, one.split("..")) for text in texts())]
