"""What mkdocs does beside its own (mkdocs.yml, `hooks`): pages that lie elsewhere in the repository are pages too.

Links in these documents lead where they lead on GitHub, from file to file. On the site a file outside of docs/ is a
page where PAGES has it; a link to any other file there is left as its words.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "k8s/README.md")  # from the repository's root, and the same on the site
# Of a number in a table's cell: `± 0.7`, `[0.1 to 0.4]`, `(0.1 to 0.4)`.
INTERVAL = re.compile(r"(?<=\d) ± (?=\d)|(?<=\d) to (?=[+-]?\d(?:[^|\[\]]*\]|[\d.]*\)))")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files, with PAGES."""
    from mkdocs.structure.files import File

    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(REPOSITORY / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """A page with its links as the site needs them, and numbers in tables in one piece with their intervals."""
    return whole_numbers(rewritten(markdown, page.file.src_uri))


def whole_numbers(markdown: str) -> str:
    """`11.8 ± 0.7`, `[0.1 to 0.4]` and `(0.1 to 0.4)` in rows of tables with blanks at which no line breaks."""
    lines = (
        INTERVAL.sub(lambda result: result[0].replace(" ", "\N{NO-BREAK SPACE}"), line)
        if line.startswith("|")
        else line
        for line in markdown.split("\n")
    )
    return "\n".join(lines)


def rewritten(markdown: str, page: str) -> str:
    """Links of the site's page `page` as they are between the site's pages."""
    origin = page if page in PAGES else f"docs/{page}"

    def link(match: re.Match[str]) -> str:
        words, target, fragment = match[1], match[2], match[3] or ""
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if not file.startswith("docs/") and file not in PAGES:
            return words
        place = posixpath.relpath(file.removeprefix("docs/"), posixpath.dirname(page) or ".")
        return f"[{words}]({place}{fragment})"

    return LINK.sub(link, markdown)
