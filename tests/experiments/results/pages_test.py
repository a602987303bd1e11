"""Pages get their tables from results, and nothing else in them changes."""

import importlib
import json

import pandas as pd
import pytest

from experiments import publish, results
from experiments.results import pages
from experiments.training.metrics import finished_metrics

PAGE = "Prose.\n\n<!-- begin one -->\nold\n<!-- end one -->\n\nMore {braces} \\1.\n"


def test_only_what_is_marked_is_replaced():
    filled = pages.fill(PAGE, {"one": "| new \\1 |\n", "unused": "x"})
    assert filled == PAGE.replace("old", "| new \\1 |")
    assert pages.blocks_of(filled) == {"one": "| new \\1 |"}


def test_a_mark_without_text_is_an_error():
    with pytest.raises(ValueError, match="marks one"):
        pages.fill(PAGE, {"other": ""})


def test_the_pages_agree_with_the_results_that_are_kept():
    made = publish.all_blocks()
    for page in publish.PAGES:
        found = pages.blocks_of(page.read_text())
        assert found
        for name, text in found.items():
            assert text == made[name], f"{page}: run `python -m experiments.publish`"


@pytest.mark.parametrize("name", publish.RUNS)
def test_the_configuration_states_what_its_run_reached(name):
    stated = importlib.import_module(f"configs.{name}").__doc__
    reached = finished_metrics(publish.DOCS / "runs" / name)["test/accuracy"]
    assert f"test accuracy {reached:.4f}" in stated
    # And the run is of the configuration as it is.
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    kept = json.loads((publish.DOCS / "runs" / name / "config.json").read_text())
    assert kept == json.loads(json.dumps(config))


def kept_map(folder):
    """A map of two starts, in which SGD learns from the second one alone."""
    accuracies = {"ours": (0.9, 0.9), "sgd": (0.1, 1.0), "sgd_lsuv": (0.0, 1.0)}
    runs = [
        {
            **{"optimizer": name, "variant": "relu", "depth": 2, "init_scale": scale},
            **{"learning_rate": 0.1, "seed": seed, "diverged": False},
            **{"validation_accuracy": accuracy, "test_accuracy": accuracy},
        }
        for name, row in accuracies.items()
        for scale, accuracy in zip((1e-8, 1.0), row, strict=True)
        for seed in range(3)
    ]
    starts = [
        {
            **{"optimizer": "start", "variant": "relu", "depth": 2, "seed": 0},
            **{"init_scale": scale, "is_finite": 1.0, "has_gradient": flag},
            "has_signal": 1.0,
        }
        for scale, flag in ((1e-8, 0.0), (1.0, 1.0))
    ]
    settings = {
        "optimizers": {
            name: {
                **{"label": name.upper(), "name": "sgd", "settings": {}},
                "learning_rates": [0.1],
                "initialization": "lsuv" if name == "sgd_lsuv" else "scaled",
            }
            for name in accuracies
        },
        **{"reference": "sgd", "depths": [2], "init_scales": [1e-8, 1e-4, 1.0]},
        "variants": {"relu": {}},
    }
    folder.mkdir(parents=True)
    results.write_table(folder / "rescue_map.csv", pd.DataFrame(starts + runs))
    (folder / "config.json").write_text(json.dumps(settings))


def test_the_tables_of_the_map(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "DOCS", tmp_path)
    kept_map(tmp_path / "rescue" / "rescue_map")
    blocks = publish.map_blocks()

    def cells(name):
        lines = blocks[name].splitlines()
        return [[x.strip() for x in line.strip("|").split("|")] for line in lines]

    heading, _, ours, sgd = cells("map-coverage")
    assert heading[1] == "of the 1 starts that float32 represents"
    assert heading[3] == "of all 2 starts"
    # 0.9 is less than 0.95 of SGD's accuracy at scale 1.
    assert ours[:2] == ["OURS", "0.0% (0.0 to 0.0)"]
    assert sgd[1] == "100.0% (100.0 to 100.0)"
    assert sgd[3] == "50.0% (50.0 to 50.0)"
    ((_, mended, *_),) = cells("map-mended")[2:]
    assert mended == "50.0% (50.0 to 50.0)"
    assert "at least 0.950 (relu)" in blocks["map-standards"]
    assert len(cells("map-rates")) == 5


def test_pages_wait_for_an_item_that_is_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "DOCS", tmp_path)
    kept_map(tmp_path / "rescue" / "rescue_map")
    assert publish.figure_blocks("rescue")["rescue-items"] == ""
    assert not publish.is_finished("rescue", "rescue_map")
    (tmp_path / "rescue" / "rescue_map" / "rescue_map.png").touch()
    assert publish.is_finished("rescue", "rescue_map")


def test_results_that_are_not_finished_are_left_out(tmp_path, monkeypatch, capsys):
    kept = {"figures/item": ("rescue/item", ("config.json", "item.png"))}
    changes = {"ROOT": tmp_path, "DOCS": tmp_path / "docs", "KEPT": kept, "PAGES": ()}
    for name, value in {**changes, "all_blocks": dict}.items():
        monkeypatch.setattr(publish, name, value)
    source, target = (
        tmp_path / x for x in ("results/figures/item", "docs/rescue/item")
    )
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    publish.main(["publish"])
    assert (
        "left out results/figures/item: it has no item.png" in capsys.readouterr().out
    )
    assert not target.exists()
    (source / "item.png").touch()
    publish.main(["publish"])
    assert sorted(x.name for x in target.iterdir()) == ["config.json", "item.png"]


SESSION = {
    "started": "2026-01-01",
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "device": {"platform": "cpu", "kind": "a processor", "count": 2},
    "versions": {"jax": "1"},
}


def test_provenance_is_of_all_sessions_with_their_notes():
    other = {**SESSION, "commit": "fedcba9876543210", "note": "beside another one"}
    assert pages.provenance("7 runs", [SESSION, other, other]) == (
        "7 runs on 2 cpu device(s), a processor; jax 1; "
        "commit 0123456789 and fedcba9876. Commit fedcba9876: beside another one."
    )


@pytest.mark.parametrize("change", [{"commit": None}, {"uncommitted_changes": True}])
def test_results_of_unknown_code_are_not_published(change):
    with pytest.raises(ValueError, match="in no commit"):
        pages.provenance("7 runs", [SESSION, {**SESSION, **change}])
