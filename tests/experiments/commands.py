"""Commands, each in a process: started alone, or many from one that has imported all.

As a program this reads lists of cases from stdin as JSON, makes a process of its own of
each case by forking, and writes what became of them. It ends with its stdin.
"""

import atexit
import functools
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


def start(environment, *arguments, own_group=False):
    """Starts a command: the name of its module and its arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=own_group,
    )


def ended(process, status=0):
    """What a command has said when it has ended, which it does with a status."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out, err


def wait_for(process, condition):
    """Waits until something is so, while a command runs."""
    while not condition():
        assert process.poll() is None
        time.sleep(0.005)


def call_all(environment, cases):
    """Calls commands, one after the other.

    Args:
        environment: of all of them.
        cases: for each the name of its module and its arguments; and before these, if
            wanted, a dictionary with ``max_file``, the bytes that a file can have on
            this disk; ``encoding``, that of the terminal; and ``closed``, whether
            nobody reads the output.
    """
    process = _importer(tuple(sorted(environment.items())))
    print(json.dumps(cases), file=process.stdin, flush=True)
    ends = process.stdout.readline()
    assert ends, f"the process of commands ended with {process.wait()}"
    return [Ended(*end) for end in json.loads(ends)]


@functools.cache
def _importer(environment):
    """The process that has imported all, one for each environment."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from tests.experiments import commands; commands.main()",
        ],
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)
    return process


def main():
    """Calls the commands of stdin."""
    import matplotlib.pyplot  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    import experiments.cli.hosts
    import experiments.cli.watching
    import experiments.results.files
    import experiments.training.checkpoints
    import experiments.training.plan  # noqa: F401

    for cases in sys.stdin:
        print(json.dumps([_call(case) for case in json.loads(cases)]), flush=True)


def _call(case):
    how, case = (case[0], case[1:]) if isinstance(case[0], dict) else ({}, case)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        process = os.fork()
        if not process:
            _become(how, *case, files=files)
        _, status = os.waitpid(process, 0)
        return [os.waitstatus_to_exitcode(status), *(x.read_text() for x in files)]


def _become(how, module, *arguments, files):
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    if how.get("closed"):
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
    if "max_file" in how:
        resource.setrlimit(resource.RLIMIT_FSIZE, (how["max_file"], how["max_file"]))
    sys.stdout.reconfigure(encoding=how.get("encoding", "utf-8"), errors="strict")
    sys.argv[1:] = arguments
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
    except OSError:
        traceback.print_exc()
        code = 120  # as Python has it
    sys.stderr.flush()
    os._exit(code)
