"""What the README and the guide show is what happens."""

import contextlib
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

from experiments.studies.page import anchor_of

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "tfds"
README = (ROOT / "README.md").read_text()
COMMANDS = [
    command.replace("\\\n", " ")
    for command in re.findall(r"^    (python -m (?:.*\\\n)*.*)$", README, re.MULTILINE)
]


EXAMPLE = re.compile(r"```python\n(.*?)```.*?```text\n(.*?)```", re.DOTALL)
GUIDE = EXAMPLE.findall((ROOT / "docs/optimizer.md").read_text())


def test_the_example_prints_what_the_readme_shows():
    ((program, shown),) = EXAMPLE.findall(README)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == shown


def test_the_guide_has_examples():
    assert len(GUIDE) == 11


@pytest.mark.parametrize(("program", "shown"), GUIDE)
def test_the_examples_of_the_guide_print_what_it_shows(program, shown):
    out = io.StringIO()
    # As a user has it: the strictness is that of these tests alone.
    with (
        contextlib.redirect_stdout(out),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        exec(program, {})
    assert out.getvalue() == shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_run(command, tmp_path):
    words = shlex.split(re.sub(r"--workdir=\S+", f"--workdir={tmp_path}", command))
    assert words[:2] == ["python", "-m"]
    is_figure = "experiments.figures" in command
    shorter = ["--quick"] if is_figure else ["--config.num_steps=2"]
    if "cifar10" in command:  # clothes stand for it
        shorter += ["--config.dataset=fashion_mnist"]
    if "cnn" in command:
        shorter += ["--config.batch_size=32", "--config.schedule.warmup_steps=1"]
    subprocess.run(
        [sys.executable, *words[1:], *shorter],
        env={
            **os.environ,
            "TFDS_DATA_DIR": str(shutil.copytree(FIXTURE, tmp_path / "tfds")),
            "LARS_CACHE_DIR": str(tmp_path / "cache"),
        },
        cwd=ROOT,
        check=True,
        capture_output=True,
    )


def test_the_readme_has_commands_and_every_file_it_names():
    assert len(COMMANDS) == 7
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        for link in re.findall(r"\]\(([^)]+)\)", text):
            file, _, heading = link.partition("#")
            target = page.parent / file if file else page
            assert link.startswith("http") or target.exists(), link
            if heading and not link.startswith("http"):
                titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                assert heading in map(anchor_of, titles), link
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
