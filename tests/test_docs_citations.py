"""What the code cites of the documentation is there: the file, and the heading that is named behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A page of docs/, and the heading in quotes where one follows.
CITATION = re.compile(r'(?<![\w./-])(docs/[\w./-]+\.md)(?:, "([^"]+)")?')
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def citations(source: str) -> list[tuple[str, str]]:
    """(page, heading) for each citation, "" where no heading is named; one may go on in the next line of a comment."""
    joined = re.sub(r"\s*\n\s*(?:# )?\s*", " ", source)
    return CITATION.findall(joined)


def missing(page: str, heading: str, root: Path = ROOT) -> str:
    """What of a citation is not there, in words; "" if all is."""
    path = root / page
    if not path.is_file():
        return f"there is no {page}"
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return "" if not heading or heading in HEADING.findall(text) else f"{page} has no heading {heading!r}"


def cited() -> Iterator[tuple[Path, str, str]]:
    for folder in ("vizrobust", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path != Path(__file__).resolve():
                for page, heading in citations(path.read_text(encoding="utf-8")):
                    yield path.relative_to(ROOT), page, heading


def test_every_cited_heading_is_there() -> None:
    found = list(cited())
    assert any(heading for _, _, heading in found), "no citation was found: has their form changed?"
    assert [f"{path}: {what}" for path, page, heading in found if (what := missing(page, heading))] == []


def test_no_two_headings_of_a_cited_page_are_alike() -> None:
    """A link to one of them would lead to the other."""
    for page in {page for _, page, _ in cited()}:
        headings = HEADING.findall((ROOT / page).read_text(encoding="utf-8"))
        assert len(headings) == len(set(headings)), page


@pytest.mark.parametrize(
    "source",
    [
        '# so it is (docs/page.md, "Two words").',
        '# so it is (docs/page.md, "Two\n    # words").',
        '# so it is (docs/page.md,\n# "Two words").',
        '    """So it is: docs/page.md, "Two\n    words".\n    """',
    ],
)
def test_a_citation_is_found_across_lines(source: str) -> None:
    assert citations(source) == [("docs/page.md", "Two words")]


def test_a_page_may_be_cited_as_a_whole() -> None:
    assert citations("see docs/page.md; and elsewhere/docs/other.md") == [("docs/page.md", "")]


@pytest.mark.parametrize(
    ("page", "heading", "expected"),
    [
        ("docs/page.md", "Two words", ""),
        ("docs/page.md", "", ""),
        ("docs/page.md", "Two word", "docs/page.md has no heading 'Two word'"),
        ("docs/page.md", "In a block", "docs/page.md has no heading 'In a block'"),
        ("docs/gone.md", "Two words", "there is no docs/gone.md"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, page: str, heading: str, expected: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text("# Page\n\n### Two words\n\n```\n# In a block\n```\n", encoding="utf-8")
    assert missing(page, heading, tmp_path) == expected
