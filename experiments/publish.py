"""Copies finished results to the pages that show them: README.md and docs/.

    python -m experiments.publish

Takes what there is of ``results/rescue``, ``results/search``, ``results/benchmark``,
``results/throughput``, ``results/runs`` and ``results/figures``, keeps their tables,
configurations, provenance and pictures under ``docs/``, and writes the tables into the
pages, beside the table of variants, which is the code's. What is in docs/ is therefore
what the pages say, and a test compares the two.
"""

import inspect
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from absl import app, logging

from experiments import figures, results
from experiments.figures import DOCS, SOURCES
from experiments.results import pages
from experiments.speed import step_cost as benchmark, throughput
from experiments.studies import page, rescue as plane
from experiments.studies.page import Entry
from experiments.studies.rescue import coverage, scales as rescue, sweep
from experiments.training.metrics import finished_metrics
from lars import presets

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in ("rescue", "paper", "book", "variants", "speed", "training")
    ),
)
RESCUES = ("rescue", "search")
RUNS = ("digits_mlp", "fashion_mnist_cnn", "cifar10_cnn")
KEPT = {  # of results/NAME, in docs/FOLDER
    "rescue": (
        "rescue/rescue",
        ("config.json", "results.csv", "provenance.json", "rescue.png"),
    ),
    "search": ("rescue/search", ("config.json", "results.csv", "provenance.json")),
    "benchmark": ("benchmark", ("benchmark.csv", "provenance.json")),
    "throughput": ("throughput", ("throughput.csv", "provenance.json")),
    **{
        f"runs/{name}": (
            f"runs/{name}",
            ("config.json", "metrics.jsonl", "provenance.json"),
        )
        for name in RUNS
    },
    **{
        f"figures/{name}": (
            f"{source}/{name}",
            ("config.json", f"{name}.csv", "provenance.json", f"{name}.png"),
        )
        for source, items in SOURCES.items()
        for name in items
    },
}


def main(argv: list[str]) -> None:
    """Copies the results, then fills the pages from the copies."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    for name, (folder, files) in KEPT.items():
        source, target = ROOT / "results" / name, DOCS / folder
        missing = [file for file in files if not (source / file).exists()]
        if source.exists() and missing:
            print(f"left out {source.relative_to(ROOT)}: it has no {missing[0]} yet")
        elif source.exists():
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy(source / file, target / file)
    logging.set_verbosity(logging.WARNING)  # JAX narrates at INFO
    blocks = all_blocks()
    for file in PAGES:
        results.write_whole(file, pages.fill(file.read_text(), blocks))
        print(f"wrote {file.relative_to(ROOT)}")


def all_blocks() -> dict[str, str]:
    """What the pages mark places for."""
    measured = {
        name: (DOCS / name, module.markdown)
        for name, module in (("benchmark", benchmark), ("throughput", throughput))
    }
    return {
        **rescue_blocks(),
        **{
            mark: text
            for name, (folder, markdown) in measured.items()
            if folder.exists()
            for mark, text in benchmark.blocks(name, folder, markdown).items()
        },
        "variants": rescue.markdown(variants_table()),
        **runs_blocks(),
        **{
            mark: text
            for source in SOURCES
            if (DOCS / source).exists()
            for mark, text in figure_blocks(source).items()
        },
        **(plane_blocks() if is_finished("plane", "rescue_map") else {}),
        **(cost_blocks() if is_finished("plane", "rescue_cost") else {}),
    }


def figure_blocks(source: str) -> dict[str, str]:
    """The items of the paper or of the book, from the tables kept in docs/."""
    entries = []
    for name, item in SOURCES[source].items():
        if not is_finished(source, name):
            continue
        table, settings = kept_figure(source, name)
        sessions = json.loads((DOCS / source / name / "provenance.json").read_text())
        parts = len(table[list(item.cells(settings)[0])].drop_duplicates())
        seconds = figures.seconds_of(name, table, settings)
        made = provenance(parts, sessions, seconds, "part(s)")
        entries.append(
            Entry(
                name,
                item,
                item.claims(table, settings),
                f"`python -m experiments.figures --figure={name} "
                f"--recompute --workdir=results/figures`: {made}",
            )
        )
    return {
        f"{source}-overview": page.overview(entries),
        f"{source}-items": "\n\n".join(page.section_of(e, source) for e in entries),
    }


def plane_blocks() -> dict[str, str]:
    """The tables of the rescue map: coverage, and with which rates."""
    table, settings = kept_figure("plane", "rescue_map")
    runs, starts = plane.runs_of(table, settings), plane.starts_in(table)
    reference, arms = settings["reference"], settings["optimizers"]
    counts = coverage.summary(runs, starts, reference)
    cells = coverage.representable(starts)
    sizes = (len(cells), int(cells["representable"].sum()))
    on_whole_plane = {
        name: arm["label"]
        for name, arm in arms.items()
        if arm["initialization"] == "scaled"
    }
    mended = counts.loc[[name for name in counts.index if name not in on_whole_plane]]
    some = ", ".join(f"{x:g}" for x in plane.scales_of(settings, str(mended.index[0])))
    standards = coverage.standards(runs, reference)
    return {
        "plane-coverage": rescue.markdown(
            coverage.coverage_table(counts, on_whole_plane, *sizes)
        ),
        "plane-mended": rescue.markdown(
            pd.DataFrame(
                {
                    "optimizer, and what is done to its start": [
                        arms[str(name)]["label"] for name in mended.index
                    ],
                    f"of the starts from {some}": [
                        coverage.interval(row, "plane_best")
                        for _, row in mended.iterrows()
                    ],
                    "with one rate for all": [
                        coverage.interval(row, "plane_one")
                        for _, row in mended.iterrows()
                    ],
                    "that rate": [f"{rate:g}" for rate in mended["one_rate"]],
                }
            )
        ),
        "plane-rates": rescue.markdown(rescue.search_space_table(arms)),
        "plane-standards": (
            "Rescued means a median test accuracy over "
            f"{runs['seed'].nunique()} seeds of at least "
            + ", ".join(f"{x:.3f} ({name})" for name, x in standards.items())
            + f": {rescue.RESCUED:g} of what tuned {arms[reference]['label']} reaches "
            f"at scale 1 in the shallowest network, {min(settings['depths'])} layers."
        ),
    }


def cost_blocks() -> dict[str, str]:
    """What a step of each optimizer of the rescue map costs."""
    table = plane.cost_table(*kept_figure("plane", "rescue_cost"))
    return {"plane-cost": rescue.markdown(table)}


def is_finished(source: str, name: str) -> bool:
    """Whether docs/ has an item as a whole: it is drawn once nothing is missing.

    Parts may be there before, for the command of the item to go on from.
    """
    return (DOCS / source / name / f"{name}.png").exists()


def kept_figure(source: str, name: str) -> tuple[pd.DataFrame, Any]:
    """The table of an item that is kept in docs/, and its settings."""
    folder = DOCS / source / name
    return (
        results.read_table(folder / f"{name}.csv"),
        json.loads((folder / "config.json").read_text()),
    )


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
        config = json.loads((folder / "config.json").read_text())
        last = finished_metrics(folder)
        if last is None:
            raise ValueError(f"the run in {folder} has not come to its end.")
        made = json.loads((folder / "provenance.json").read_text())
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
        "runs": rescue.markdown(pd.DataFrame(rows)),
        "runs-provenance": provenance(len(rows), sessions),
    }


def rescue_blocks() -> dict[str, str]:
    """The tables of the pages, from the results kept in docs/."""
    blocks = {}
    for name in RESCUES:
        folder = DOCS / "rescue" / name
        config = json.loads((folder / "config.json").read_text())
        table = results.read_table(folder / "results.csv", sweep.DTYPES)
        reference = config["reference"]
        arms = config["optimizers"]
        labels = {arm: settings["label"] for arm, settings in arms.items()}
        overview = rescue.overview_table(table, reference, labels)
        sessions = json.loads((folder / "provenance.json").read_text())
        blocks |= {
            f"{name}-overview": rescue.markdown(overview),
            f"{name}-rates": rescue.markdown(searched_rates_table(table, config)),
            f"{name}-accuracy": rescue.markdown(
                rescue.accuracy_table(table, reference, labels)
            ),
            f"{name}-space": rescue.markdown(rescue.search_space_table(arms)),
            f"{name}-threshold": (
                f"Rescued means a median test accuracy of at least "
                f"{rescue.threshold(table, reference):.4f} over "
                f"{table['seed'].nunique()} seeds."
            ),
            f"{name}-provenance": provenance(len(table), sessions),
        }
    return blocks


def searched_rates_table(
    table: pd.DataFrame, config: Mapping[str, Any]
) -> pd.DataFrame:
    """The five rates of each optimizer that cover the most scales, beside all tried."""
    useful = rescue.most_useful_rates(table, config["reference"], count=5)
    tried = rescue.search_space_table(config["optimizers"])
    return tried.rename(columns={"learning rates": "learning rates tried"}).assign(
        **{
            "the five most useful": [
                ", ".join(f"{rate:g}" for rate in rates)
                for rates in useful["learning_rates"]
            ],
            "rescue on validation": [
                f"{row.rescued}, mean {row.accuracy:.4f}" for row in useful.itertuples()
            ],
        }
    )


def provenance(
    runs: int,
    sessions: list[dict[str, Any]],
    seconds: float | None = None,
    noun: str = "runs",
) -> str:
    """One sentence of all the sessions that made a table.

    Args:
        runs: how many runs, or parts, it has.
        sessions: the sessions.
        seconds: how long it took; None if it is what the sessions took.
        noun: what they are.

    Raises:
        ValueError: if a session's code is not known: results that no commit can give
            again are not published.
    """
    for session in sessions:
        if session["commit"] is None or session["uncommitted_changes"]:
            raise ValueError(
                f"the session of {session['started']} ran on code that is in no "
                "commit: commit, delete the results and make them again."
            )

    def all_of(describe: Callable[[dict[str, Any]], str]) -> str:
        return " and ".join(dict.fromkeys(map(describe, sessions)))

    devices = all_of(
        lambda s: (
            f"{s['device']['count']} {s['device']['platform']} device(s), "
            f"{s['device']['kind']}"
        )
    )
    if seconds is None:
        seconds = sum(s["seconds"] for s in sessions)
    versions = all_of(lambda s: ", ".join(f"{k} {v}" for k, v in s["versions"].items()))
    noted = [s for s in sessions if "note" in s]  # added by whoever ran it
    notes = "".join(
        dict.fromkeys(f" Commit {s['commit'][:10]}: {s['note']}." for s in noted)
    )
    return (
        f"{runs} {noun} in {seconds:.0f} seconds on "
        f"{devices}; {versions}; commit {all_of(lambda s: s['commit'][:10])}.{notes}"
    )


if __name__ == "__main__":
    app.run(main)
