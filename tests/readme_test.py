"""The README and the pages show what happens, and point to what there is."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import figures
from experiments.cli import command as command_line
from experiments.studies.page import anchor_of
from experiments.train import DRY_RUN as DRY_RUN  # defines the flags of the command

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests" / "experiments" / "data" / "fixtures" / "tfds"
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]

EXAMPLE = re.compile(r"```python\n(.*?)```.*?```text\n(.*?)```", re.DOTALL)
EXAMPLES = {
    f"{name}-{number}": example
    for name, text in PAGES.items()
    for number, example in enumerate(EXAMPLE.findall(text))
}

COMMAND = re.compile(r"(?:^    |`)(python -m (?:[^`\n]*\\\n)*[^`\n]*)", re.MULTILINE)
COMMANDS = sorted(
    {
        " ".join(command.replace("\\\n", " ").split())
        for text in PAGES.values()
        for command in COMMAND.findall(text)
    }
)


def test_every_program_shows_what_it_prints():
    programs = sum(text.count("```python") for text in PAGES.values())
    assert len(EXAMPLES) == programs > 10


@pytest.mark.parametrize("name", [x for x in EXAMPLES if x != "README.md-0"])
def test_the_examples_print_what_the_pages_show(name):
    program, shown = EXAMPLES[name]
    out = io.StringIO()
    # As a user has it: the strictness is that of these tests alone.
    with (
        contextlib.redirect_stdout(out),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        exec(program, {"__name__": "__main__"})
    assert out.getvalue() == shown


def test_the_example_of_the_readme_runs_without_the_experiments():
    ((program, shown),) = EXAMPLE.findall(README)
    refused = "import sys; sys.modules['experiments'] = None\n"
    result = subprocess.run(
        [sys.executable, "-c", refused + program],
        capture_output=True,
        text=True,
        check=True,
    )
    # Other processors round otherwise, and a thousand steps enlarge that.
    number = re.compile(r"\d+\.\d+")
    assert number.sub("X", result.stdout) == number.sub("X", shown)
    found, stated = (
        [float(x) for x in number.findall(text)] for text in (result.stdout, shown)
    )
    assert found == pytest.approx(stated, rel=0.5)
    assert found[0] < found[1] / 4, "the network has learnt"


@pytest.mark.filterwarnings("ignore:the load_module.. method")  # ml_collections
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_name_flags_settings_and_figures_that_there_are(
    command, monkeypatch
):
    _, _, module, *words = shlex.split(command)
    assert importlib.util.find_spec(module)
    if module not in ("experiments.train", "experiments.figures"):
        assert not words, "nothing here checks its flags"
        return
    # Overridden settings are read from there.
    monkeypatch.setattr(sys, "argv", [module, *words])
    with flagsaver.flagsaver():
        assert flags.FLAGS(sys.argv) == [module]
        if module == "experiments.figures":
            assert figures.chosen(figures.FIGURE.value)
        else:
            overrides = dict(re.findall(r"--config\.(\S+)=(\S+)", command))
            for setting, value in overrides.items():
                reached = command_line.CONFIG.value
                for part in setting.split("."):
                    reached = reached[part]
                assert reached == float(value)
            assert command_line.CONFIG.value.num_steps > 0


@pytest.mark.parametrize(
    ("command", "shorter", "shows"),
    [
        (
            "python -m experiments.figures --figure=book_sigmoid "
            "--workdir=results/figures",
            [],
            "Picture: ",
        ),
        (
            "python -m experiments.train --config=configs/fashion_mnist_cnn.py "
            "--dry_run",
            # As many images as the fixture has.
            ["--config.batch_size=32", "--config.schedule.warmup_steps=1"],
            "learning rate",
        ),
    ],
    ids=["figure", "plan"],
)
def test_a_figure_and_the_plan_of_a_run_are_made_by_the_command_that_is_shown(
    command, shorter, shows, tmp_path
):
    assert command in COMMANDS
    words = shlex.split(re.sub(r"--workdir=\S+", f"--workdir={tmp_path}", command))
    result = subprocess.run(
        [sys.executable, *words[1:], *shorter],
        env={
            **os.environ,
            "TFDS_DATA_DIR": str(shutil.copytree(FIXTURE, tmp_path / "tfds")),
            "LARS_CACHE_DIR": str(tmp_path / "cache"),
        },
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert shows in result.stdout


@pytest.mark.parametrize("name", PAGES)
def test_links_point_to_files_and_headings_that_exist(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if link.startswith("http"):
            continue
        file, _, heading = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{name} links to {link}: there is no such file."
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in map(anchor_of, titles), (
                f"{name} links to {link}: there is no such heading."
            )


@pytest.mark.parametrize("name", PAGES)
def test_files_and_make_targets_that_the_text_names_exist(name):
    folders = "configs|experiments|lars|tests|docs"
    for path in re.findall(rf"`((?:{folders})/[\w./]*)`", PAGES[name]):
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^([\w ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:^    |`)make (\w+)", PAGES[name], re.MULTILINE):
        assert target in " ".join(targets).split(), target


def test_every_page_can_be_reached_from_the_readme():
    for name in PAGES:
        assert name == "README.md" or f"]({name})" in README
