"""Pages get their tables from results, and nothing else in them changes."""

import importlib
import json

import pytest

from experiments import publish
from lars import pages
from lars.metrics import finished_metrics

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
    made = publish.all_blocks()
    found = pages.blocks_of(page.read_text())
    assert found
    for name, text in found.items():
        assert text == made[name], f"{page.name}: run `python -m experiments.publish`"


@pytest.mark.parametrize("name", publish.RUNS)
def test_the_configuration_states_what_its_run_reached(name):
    stated = importlib.import_module(f"configs.{name}").__doc__
    reached = finished_metrics(publish.DOCS / "runs" / name)["test/accuracy"]
    assert f"test accuracy {reached:.4f}" in stated
    # And the run is of the configuration as it is.
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    kept = json.loads((publish.DOCS / "runs" / name / "config.json").read_text())
    assert kept == json.loads(json.dumps(config))


SESSION = {
    "started": "2026-01-01",
    "seconds": 10.0,
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "device": {"platform": "cpu", "kind": "a processor", "count": 2},
    "versions": {"jax": "1"},
}


def test_provenance_is_of_all_sessions():
    other = {**SESSION, "seconds": 5.0, "commit": "fedcba9876543210"}
    assert publish.provenance(7, [SESSION, other]) == (
        "7 runs in 15 seconds on 2 cpu device(s), a processor; jax 1; "
        "commit 0123456789 and fedcba9876."
    )


@pytest.mark.parametrize("change", [{"commit": None}, {"uncommitted_changes": True}])
def test_results_of_unknown_code_are_not_published(change):
    with pytest.raises(ValueError, match="in no commit"):
        publish.provenance(7, [SESSION, {**SESSION, **change}])
