"""Words of others in Markdown: a reader of it shows them and obeys nothing."""

import pytest
from markdown_it import MarkdownIt

from cmapkd_core.markup import Markdown, code, plain

HOSTILE = [
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;b&gt;", "[a](javascript:alert(1))"),
    *("![a](http://x/y.png)", "[[a]](x)", "**bold** _it_ __b__ ~~s~~ `c` ``d``", "# heading", "- item", "1. item"),
    *("--- | ---", "a | b", "\\", "a\\", "\\<b>", "`", "``", "$x$", "1) x", "+ x", "===", "a_b_c", "snake_case", "* x"),
    *("AT&T", "a & b", "x < y > z", "[0.1, 0.2]", "[-1.9 to +2](x)", "[1, 2][3, 4]", "3.5"),
]


def words(text: str) -> str:
    """What a reader shows, and that it is one paragraph's plain text."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    opening, inline, closing = reader.parse(text)
    assert (opening.type, closing.type) == ("paragraph_open", "paragraph_close")
    assert {token.type for token in inline.children or []} <= {"text", "text_special", "code_inline"}
    return "".join(token.content for token in inline.children or [])


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_escaped_is_shown_as_it_is(text: str) -> None:
    assert words(plain(text)) == text
    assert words(f"a {plain(text)}.") == f"a {text}."
    assert words(code(text)) == text
    reader = MarkdownIt("commonmark").enable("table")
    cells = reader.parse(f"| a | b |\n|---|---|\n| {plain(text)} | {code(text)} |")
    assert len(cells) == len(reader.parse("| a | b |\n|---|---|\n| x | y |"))


def test_it_stays_one_line_and_hides_nothing() -> None:
    assert plain("a\n# b\r\n\x1b[2Jc \u202ed\x00\x9b\u200e\u200f\u061c") == "a # b \\[2Jc d"
    assert code("a\n\nb\x1b") == "`a b`"
    assert plain(Markdown("**x**")) == "**x**"
    assert plain(plain("a_ *")) == plain("a_ *")
    assert plain(0.5) == "0.5"
    assert code("") == ""
