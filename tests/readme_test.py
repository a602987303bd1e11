"""What the README shows is what happens."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    command.replace("\\\n", " ")
    for command in re.findall(r"^    (python -m (?:.*\\\n)*.*)$", README, re.MULTILINE)
]


def test_the_example_prints_what_the_readme_shows():
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_run(command, tmp_path):
    words = shlex.split(re.sub(r"--workdir=\S+", f"--workdir={tmp_path}", command))
    assert words[:2] == ["python", "-m"]
    subprocess.run(
        [sys.executable, *words[1:], "--config.num_steps=2"],
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path / "tfds")},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )


def test_the_readme_has_commands_and_every_file_it_names():
    assert len(COMMANDS) == 3
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
