"""What every command does alike: flags, and errors a person can act on."""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from experiments.checks import did_you_mean

Config = Any
"""A `ConfigDict`. Type checkers know too little of its attributes to be told so."""

CONFIGS = {
    f"configs/{file.name}": file
    for file in sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    if "\ndef get_config(" in file.read_text(encoding="utf-8")
}
"""The configurations of single runs."""

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"The configuration file: {', '.join(CONFIGS)}, or one of your own.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that results go to.")

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130
"""Exit statuses."""


def run(
    main: Callable[[Config, str], None],
    needs_workdir: Callable[[], bool] = lambda: True,
) -> None:
    """Parses the flags and calls ``main(config, workdir)``.

    An error ends the command with one line, which says what was wrong and what to do:
    with status 2 if it is in the command line, the configuration or a file of the
    workdir, and with 1 if it is one of the computation. ``python -X dev`` shows the
    traceback. An interruption ends with 130, as shells have it.
    """
    flags.mark_flag_as_required("config")
    _run(lambda _: main(CONFIG.value, _workdir(needs_workdir())), _parse_config)


def run_measurement(main: Callable[[str], None]) -> None:
    """Calls ``main(workdir)`` of a command without a configuration, as `run` does."""
    flags.mark_flag_as_required("workdir")
    _run(lambda _: main(_workdir()), _parse)


def run_bare(main: Callable[[list[str]], None]) -> None:
    """Calls ``main`` of a command that has no flags, as `run` does."""
    _run(main, _parse)


@contextlib.contextmanager
def reported_errors(status: int = BAD_INPUT) -> Iterator[None]:
    """Ends the command with the message of an error, in one line."""
    try:
        yield
    except BrokenPipeError:
        stop(
            "what reads the output of this command ended before it (Broken pipe); give "
            "the same command without it.",
            FAILURE,
        )
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if sys.flags.dev_mode:
            raise
        stop(str(error) or type(error).__name__, status)


def stop(message: str, status: int = BAD_INPUT) -> NoReturn:
    """Ends the command with a line on stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def interrupt_on_signals() -> Callable[[], None]:
    """Makes Ctrl-C and a polite request to stop raise KeyboardInterrupt.

    Returns:
        A check to be called between pieces of work. Where the exception is raised in a
        destructor or a callback, Python drops it: the check raises it again.
    """
    signals: list[int] = []

    def interrupt(number: int, frame: Any) -> NoReturn:
        del frame
        signals.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if signals:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    return check


@contextlib.contextmanager
def whole_command() -> Iterator[None]:
    """Everything between the flags and the end of a command, as `run` describes it."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may know no Greek
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with reported_errors(FAILURE):
            yield
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # else Python would print a traceback when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(
    main: Callable[[list[str]], None], parse: Callable[[Sequence[str]], list[str]]
) -> None:
    if not sys.flags.dev_mode:  # libraries log what they raise as well
        logging.set_verbosity(logging.FATAL)
        # Nor does it help to see how the threads of a library end that has failed.
        sys.unraisablehook = lambda _: None

    def flushed_main(argv: list[str]) -> None:
        main(argv)
        sys.stdout.flush()  # here, where an error of it is reported

    try:
        with whole_command():
            app.run(flushed_main, flags_parser=parse)
    except SystemExit as end:
        if end.code == FAILURE:
            sys.stderr.flush()
            os._exit(FAILURE)  # threads may wait for what has failed, as Orbax's do
        raise


def _workdir(is_needed: bool = True) -> str:
    """The folder of ``--workdir``; an empty name would be the current folder."""
    if is_needed and not (WORKDIR.value or "").strip():
        stop("--workdir is missing: the folder that results go to")
    return str(WORKDIR.value)


def _parse(argv: Sequence[str]) -> list[str]:
    for argument in argv[1:]:
        if re.match(r"--?config\b", argument):
            stop(f"this command has no --config, got {argument!r}")
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        stop(_without_help(error))
    if len(rest) > 1:
        stop(f"unexpected argument {rest[1]!r}")
    return rest


def _parse_config(argv: Sequence[str]) -> list[str]:
    given = [x for x in argv[1:] if re.match(r"--?config(=|$)", x)]
    if len(given) > 1:  # ml_collections would make one of both
        stop(f"--config is given more than once: {' '.join(given)}")
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.present and not isinstance(CONFIG.value, config_dict.ConfigDict):
            # ml_collections keeps this error until the configuration is first used.
            name = str(config_flags.get_config_filename(flags.FLAGS["config"]))
            _stop_at_config(name, "there is no such file")
    except AttributeError as error:
        if "get_config" in str(error):
            name = argv[argv.index(given[0]) + 1] if "=" not in given[0] else given[0]
            name = name.partition("=")[2] or name
            _stop_at_config(name, "it has no get_config, which makes one")
        # A key that a locked configuration does not have. The text is inside a
        # KeyError, whose own text is quoted.
        inner = error.args[0]
        text = inner.args[0] if isinstance(inner, KeyError) else str(error)
        stop(f"the configuration has no setting {text}")
    except (flags.Error, OSError) as error:
        # config_flags puts the traceback of an error in a configuration file here.
        message = _without_help(error)
        errors = re.findall(r"^\s*\w*Error: (.*)$", message, re.MULTILINE)
        stop(errors[-1] if errors else message)
    except Exception as error:  # whatever a file is that is no program
        stop(f"the configuration cannot be read ({type(error).__name__}: {error})")
    if len(rest) > 1:
        stop(f"unexpected argument {rest[1]!r}; settings are --config.NAME=VALUE")
    return rest


def _stop_at_config(name: str, problem: str) -> NoReturn:
    stop(f"--config={name}: {problem}{did_you_mean(name, CONFIGS)}")


def _without_help(error: Exception) -> str:
    return re.sub(r"Pass --help\S* .*", "", str(error)).strip()
