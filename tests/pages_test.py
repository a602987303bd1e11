"""Pages get their tables from results, and nothing else in them changes."""

import pytest

from experiments import publish
from lars import pages

PAGE = "Prose.\n\n<!-- begin one -->\nold\n<!-- end one -->\n\nMore {braces} \\1.\n"


def test_only_what_is_marked_is_replaced():
    filled = pages.fill(PAGE, {"one": "| new \\1 |\n", "unused": "x"})
    assert filled == PAGE.replace("old", "| new \\1 |")
    assert pages.blocks_of(filled) == {"one": "| new \\1 |"}


def test_a_mark_without_text_is_an_error():
    with pytest.raises(ValueError, match="marks one"):
        pages.fill(PAGE, {"other": ""})


@pytest.mark.parametrize("page", publish.PAGES, ids=lambda page: page.name)
def test_the_pages_agree_with_the_results_that_are_kept(page):
    made = publish.rescue_blocks()
    found = pages.blocks_of(page.read_text())
    assert found
    for name, text in found.items():
        assert text == made[name], f"{page.name}: run `make figures`"
