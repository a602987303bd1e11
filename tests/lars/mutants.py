"""Which ways to break the optimizer the tests notice: a sample, made by cosmic-ray.

    make mutants            # 12 of each module
    make mutants SAMPLE=100

In a copy of the project, cosmic-ray changes one operator, constant or branch of a
module at a time and runs the tests of that module. What no test notices is printed.
"""

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tqdm
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).parents[2]
TESTS = {
    "algorithm": ["families", "presets", "faults"],
    "norms": ["norms", "sharding"],
    "presets": ["presets"],
    "polar_optimizer": ["polar_optimizer", "refusals", "sharding"],
    "silence": ["waking"],
    "waking": ["waking", "refusals"],
}
"""The modules, and the files of tests that are run for each."""

CONFIG = """
[cosmic-ray]
module-path = "lars/{module}.py"
timeout = 600
excluded-modules = []
test-command = "{python} -m pytest -q -x -p no:cacheprovider {files}"
[cosmic-ray.distributor]
name = "local"
"""

IN_ANNOTATIONS = "core/ReplaceBinaryOperator_BitOr_"
"""Left out: most of these are in types, where each ends the import."""


def main() -> None:
    """Prints what survives of each module, and the part that is noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="module")
    parser.add_argument("--sample", type=int, default=12, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="which are drawn")
    arguments = parser.parse_args()
    unknown = set(arguments.modules) - set(TESTS)
    if unknown:
        parser.error(f"no module {', '.join(unknown)}; there are {', '.join(TESTS)}")
    with tempfile.TemporaryDirectory(prefix="lars-mutants-") as place:
        copy = Path(place) / "lars"
        ignored = shutil.ignore_patterns(".git", ".venv", "results", "runs", "docs")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for module in arguments.modules:
            noticed, survivors = tried(module, copy, arguments.sample, arguments.seed)
            print(f"lars/{module}.py: {noticed} of {noticed + len(survivors)} noticed")
            print("".join(f"\nnot noticed:\n{diff}\n" for diff in survivors))


def tried(module: str, copy: Path, sample: int, seed: int) -> tuple[int, list[str]]:
    """How many of the mutants of a module are noticed, and the others as patches."""
    files = " ".join(f"tests/lars/{name}_test.py" for name in TESTS[module])
    config, session = copy / f"{module}.toml", copy / f"{module}.sqlite"
    config.write_text(CONFIG.format(module=module, python=sys.executable, files=files))

    def cosmic_ray(*words: str) -> None:
        command = [sys.executable, "-m", "cosmic_ray.cli", *words]
        subprocess.run(command, cwd=copy, check=True, stdout=subprocess.DEVNULL)

    cosmic_ray("baseline", str(config))  # what fails as it is would notice everything
    cosmic_ray("init", str(config), str(session))
    with use_db(session, WorkDB.Mode.open) as db:
        items = sorted(db.work_items, key=lambda item: item.job_id)
        wanted = [
            item.job_id
            for item in sorted(items, key=lambda item: str(item.mutations))
            if not item.mutations[0].operator_name.startswith(IN_ANNOTATIONS)
        ]
        drawn = set(random.Random(seed).sample(wanted, min(sample, len(wanted))))
        for item in items:
            if item.job_id not in drawn:
                skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED)
                db.set_result(item.job_id, skipped)
    with tqdm.tqdm(total=len(drawn), desc=module) as bar:
        process = subprocess.Popen(
            [sys.executable, "-m", "cosmic_ray.cli", "exec", str(config), str(session)],
            cwd=copy,
        )
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            bar.update(len(results(session, drawn)) - bar.n)
    if process.returncode:
        raise SystemExit(f"cosmic-ray ended with {process.returncode} on {module}.")
    found = results(session, drawn)
    survivors = [x.diff for x in found if x.test_outcome == TestOutcome.SURVIVED]
    return len(found) - len(survivors), survivors


def results(session: Path, drawn: set[str]) -> list[WorkResult]:
    """What is known of the mutants that were drawn."""
    with use_db(session, WorkDB.Mode.open) as db:
        return [result for job_id, result in db.results if job_id in drawn]


if __name__ == "__main__":
    main()
