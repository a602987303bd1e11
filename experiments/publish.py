"""Copies finished results to the pages that show them: README.md and docs/.

    python -m experiments.publish

Takes what there is of ``results/rescue``, ``results/rescue_transformer``,
``results/benchmark``, ``results/throughput``, ``results/runs`` and ``results/figures``,
keeps their tables,
configurations, provenance and pictures under ``docs/``, and writes the tables into the
pages, beside the table of variants, which is the code's. What is in docs/ is therefore
what the pages say, and a test compares the two.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import figures, results
from experiments.cli import command
from experiments.figures import DOCS, SOURCES
from experiments.results import pages
from experiments.results.pages import markdown
from experiments.speed import orthogonality, step_cost as benchmark, throughput
from experiments.studies import Settings, page
from experiments.studies.page import Entry
from experiments.studies.rescue import coverage, items
from experiments.studies.rescue.cost import cost_table
from experiments.studies.rescue.grid import runs_of, scales_of, starts_in
from experiments.training.metrics import finished_metrics
from lars import presets

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in ("rescue", "maps", "paper", "book", "variants", "speed", "training")
    ),
)
RUNS = ("digits_mlp", "fashion_mnist_cnn", "cifar10_cnn")
SMALL_MAPS = ("rescue", "rescue_transformer")
"""What `make rescue` computes, in a place of its own."""


KEPT = {  # of results/NAME, in docs/FOLDER
    "benchmark": (
        "benchmark",
        (
            *("benchmark.csv", "benchmark.png", "provenance.json"),
            *("orthogonality.csv", "orthogonality.png"),
        ),
    ),
    "throughput": ("throughput", ("throughput.csv", "provenance.json")),
    **{
        f"runs/{name}": (
            f"runs/{name}",
            ("config.json", "metrics.jsonl", "provenance.json"),
        )
        for name in RUNS
    },
    **{
        name if name in SMALL_MAPS else f"figures/{name}": (
            f"{source}/{name}",
            ("config.json", f"{name}.csv", "provenance.json", f"{name}.png"),
        )
        for source, items in SOURCES.items()
        for name in items
    },
}


def main(argv: list[str]) -> None:
    """Copies the results, then fills the pages from the copies."""
    del argv
    for name, (folder, files) in KEPT.items():
        source, target = ROOT / "results" / name, DOCS / folder
        missing = [file for file in files if not (source / file).exists()]
        if source.exists() and missing:
            print(f"left out {source.relative_to(ROOT)}: it has no {missing[0]} yet")
        elif source.exists():
            check_files(source, files)
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                results.write_whole(target / file, (source / file).read_bytes())
    blocks = all_blocks()
    for file in PAGES:
        results.write_whole(file, pages.fill(file.read_text(), blocks))
        print(f"wrote {file.relative_to(ROOT)}")


def check_files(folder: Path, files: Sequence[str]) -> None:
    """Raises ValueError, before anything is replaced, if a file is damaged."""
    for file in files:
        name, _, kind = file.partition(".")
        if name in figures.ITEMS and kind == "csv":
            settings = results.read_json(folder / "config.json")
            figures.table_in(folder / file, name, settings)
        elif kind == "csv":
            results.read_table(folder / file)
        elif kind == "json":
            results.read_json(folder / file)


def all_blocks() -> dict[str, str]:
    """What the pages mark places for."""
    blocks = {"variants": markdown(variants_table()), **runs_blocks()}
    for module, name in ((benchmark, "benchmark"), (throughput, "throughput")):
        if (DOCS / name).exists():
            table = results.read_table(DOCS / name / f"{name}.csv")
            blocks[name] = module.markdown(table)
            (session,) = sessions = results.sessions_of(DOCS / name)
            blocks[f"{name}-provenance"] = pages.provenance(
                f"One run of {session['seconds']:.0f} seconds", sessions
            )
    if (DOCS / "benchmark").exists():
        singular = results.read_table(DOCS / "benchmark" / "orthogonality.csv")
        blocks["orthogonality"] = orthogonality.markdown(singular)
    for source in SOURCES:
        if (DOCS / source).exists():
            blocks |= figure_blocks(source)
    if is_finished("rescue", "rescue_map"):
        blocks |= map_blocks()
    for name in ("networks", "confirmation"):
        if is_finished("rescue", f"rescue_{name}"):
            blocks |= networks_blocks(name)
    if is_finished("rescue", "rescue_confirmation"):
        table, settings = kept_figure("rescue", "rescue_confirmation")
        earlier = items.overview(table, {**settings, "reference": "scion"})
        blocks["confirmation-earlier"] = markdown(earlier.iloc[:, :6])
    if is_finished("rescue", "rescue_cost"):
        costs = cost_table(*kept_figure("rescue", "rescue_cost"))
        blocks["map-cost"] = markdown(costs)
    for block, name in OVERVIEWS.items():
        overview = figures.ITEMS[name].overview
        if is_finished("rescue", name) and overview is not None:
            blocks[block] = markdown(overview(*kept_figure("rescue", name)))
    return blocks


OVERVIEWS = {
    "small-overview": "rescue",
    "transformer-overview": "rescue_transformer",
    "parts-overview": "rescue_parts",
    "mended-overview": "rescue_mended",
    "depth-overview": "rescue_depth",
    "repair-overview": "rescue_repair",
}
"""By the names of blocks: items whose tables the page of the rescue map shows."""


def figure_blocks(source: str) -> dict[str, str]:
    """The items of the paper or of the book, from the tables kept in docs/."""
    entries = []
    for name, item in SOURCES[source].items():
        if not is_finished(source, name):
            continue
        table, settings = kept_figure(source, name)
        sessions = results.sessions_of(DOCS / source / name)
        parts = len(table[list(item.cells(settings)[0])].drop_duplicates())
        seconds = figures.seconds_of(name, table, settings)
        made = pages.provenance(
            f"`python -m experiments.figures --figure={name} --recompute "
            f"--workdir=results/figures`: {parts} part(s) in {seconds:.0f} seconds",
            sessions,
        )
        entries.append(Entry(name, item, item.claims(table, settings), made))
    return {
        f"{source}-overview": page.overview(entries),
        f"{source}-items": "\n\n".join(page.section_of(e, source) for e in entries),
    }


SHORT = ("polar_waking", "muon", "optax_lars", "sgd")
"""The optimizers of the README's table: the recommended one and three that are known.
Muon rescues the most of the others."""


def map_blocks() -> dict[str, str]:
    """The tables of the rescue map: coverage, and with which rates."""
    table, settings = kept_figure("rescue", "rescue_map")
    runs, starts = runs_of(table, settings), starts_in(table)
    reference, arms = settings["reference"], settings["optimizers"]
    whole = SOURCES["rescue"]["rescue_map"].overview
    assert whole is not None
    counts = coverage.summary(runs, starts, reference)
    short = coverage.coverage_table(
        counts,
        {name: arms[name]["label"] for name in SHORT if name in arms},
        coverage.represented(starts),
    )
    return {
        "map-coverage": markdown(whole(table, settings)),
        "map-short": markdown(short.iloc[:, :3]),
        "map-mended": markdown(mended_table(counts, settings)),
        "map-rates": markdown(coverage.search_space_table(arms)),
        "map-standards": (
            f"{standards_text(runs, settings)} in the shallowest network, "
            f"{min(settings['depths'])} layers."
        ),
    }


def networks_blocks(name: str) -> dict[str, str]:
    """The tables of networks of several kinds."""
    table, settings = kept_figure("rescue", f"rescue_{name}")
    overview = SOURCES["rescue"][f"rescue_{name}"].overview
    assert overview is not None
    return {
        f"{name}-overview": markdown(overview(table, settings)),
        f"{name}-standards": (
            f"{standards_text(runs_of(table, settings), settings)}, in the shallowest "
            "network of its kind."
        ),
    }


def mended_table(counts: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """How much is rescued by what is done to the start, of the scales that it has."""
    arms = settings["optimizers"]
    mended = [name for name in counts.index if arms[name]["initialization"] != "scaled"]
    some = ", ".join(f"{x:g}" for x in scales_of(settings, str(mended[0])))
    return pd.DataFrame(
        {
            "optimizer, and what is done to its start": arms[str(name)]["label"],
            f"of the starts from {some}": coverage.interval(row, "all_best"),
            "with one rate for all": coverage.interval(row, "all_one"),
            "that rate": f"{row['one_rate']:g}",
        }
        for name, row in counts.loc[mended].iterrows()
    )


def standards_text(runs: pd.DataFrame, settings: Settings) -> str:
    """What counts as rescued, by variants."""
    reference = settings["reference"]
    standards = coverage.standards(runs, reference)
    return (
        f"Rescued means a median test accuracy over {runs['seed'].nunique()} seeds of "
        "at least "
        + ", ".join(f"{x:.3f} ({name})" for name, x in standards.items())
        + f": {coverage.RESCUED:g} of what "
        + (
            "the best optimizer"
            if reference == coverage.BEST
            else f"tuned {settings['optimizers'][reference]['label']}"
        )
        + " reaches at scale 1"
    )


def is_finished(source: str, name: str) -> bool:
    """Whether docs/ has an item as a whole: it is drawn once nothing is missing.

    Parts may be there before, for the command of the item to go on from.
    """
    return (DOCS / source / name / f"{name}.png").exists()


def kept_figure(source: str, name: str) -> tuple[pd.DataFrame, Any]:
    """The table of an item that is kept in docs/, and its settings."""
    folder = DOCS / source / name
    settings = results.read_json(folder / "config.json")
    return figures.table_in(folder / f"{name}.csv", name, settings), settings


def variants_table() -> pd.DataFrame:
    """The published variants: what each computes, its defaults, and its source."""

    def defaults(variant: presets.Variant) -> str:
        parameters = inspect.signature(variant.function).parameters
        names = ("weight_decay", "trust_coefficient", "momentum")
        return ", ".join(f"{parameters[name].default:g}" for name in names)

    return pd.DataFrame(
        {
            "preset": f"`lars.presets.{name}`",
            "family": variant.family,
            "equation": variant.equation.replace("|", "\\|"),
            "β, η, m by default": defaults(variant),
            "source": f"[{variant.source}]({variant.url})",
        }
        for name, variant in presets.VARIANTS.items()
    )


def runs_blocks() -> dict[str, str]:
    """The single runs whose results are kept in docs/."""
    rows, sessions = [], []
    for name in RUNS:
        folder = DOCS / "runs" / name
        config = results.read_json(folder / "config.json")
        last = finished_metrics(folder)
        if last is None:
            raise ValueError(f"the run in {folder} has not come to its end.")
        made = results.sessions_of(folder)
        sessions += made
        rows.append(
            {
                "configuration": f"[{name}](../configs/{name}.py)",
                "data set": config["dataset"],
                "batch": config["batch_size"],
                "steps": last["step"],
                "test accuracy": f"{last['test/accuracy']:.4f}",
                "test loss": f"{last['test/loss']:.3f}",
                "minutes": f"{sum(s['seconds'] for s in made) / 60:.1f}",
            }
        )
    return {
        "runs": markdown(pd.DataFrame(rows)),
        "runs-provenance": pages.provenance(
            f"{len(rows)} runs in {sum(s['seconds'] for s in sessions):.0f} seconds",
            sessions,
        ),
    }


if __name__ == "__main__":
    command.run_bare(main)
