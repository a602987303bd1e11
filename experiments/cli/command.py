"""What every command does alike: flags, and errors a person can act on."""

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

Config = Any
"""A `ConfigDict`. Type checkers know too little of its attributes to be told so."""

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The configuration file, configs/NAME.py.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that results go to.")


def run(
    main: Callable[[Config, str], None],
    needs_workdir: Callable[[], bool] = lambda: True,
) -> None:
    """Parses the flags and calls ``main(config, workdir)``.

    What is wrong with the command line or the configuration is said in one line, with
    exit status 2; an interruption ends with 130, as shells have it.
    """
    logging.set_verbosity(logging.WARNING)  # JAX and TFDS narrate at INFO
    flags.mark_flag_as_required("config")

    def parsed_main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _stop(f"unexpected argument {argv[1]!r}; settings are --config.NAME=VALUE")
        if WORKDIR.value is None and needs_workdir():
            _stop("--workdir is missing: the folder that results go to")
        try:
            main(CONFIG.value, str(WORKDIR.value))
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            sys.exit(130)

    app.run(parsed_main, flags_parser=_parse)


def run_measurement(main: Callable[[str], None]) -> None:
    """Parses the flags of a command without a configuration; calls ``main(workdir)``.

    Errors and interruptions end it as in `run`.
    """
    logging.set_verbosity(logging.WARNING)
    flags.mark_flag_as_required("workdir")

    def parse(argv: Sequence[str]) -> list[str]:
        with reported_errors():
            try:
                rest = flags.FLAGS(argv)
            except flags.Error as error:
                raise ValueError(str(error)) from error
            if CONFIG.present:
                raise ValueError("this command has no --config")
            if len(rest) > 1:
                raise ValueError(f"unexpected argument {rest[1]!r}")
            return rest

    def parsed_main(argv: Sequence[str]) -> None:
        del argv
        try:
            main(str(WORKDIR.value))
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            sys.exit(130)

    app.run(parsed_main, flags_parser=parse)


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
def reported_errors() -> Iterator[None]:
    """Ends the command with the message of an error in what the user asked for."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        _stop(str(error))


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.present and not isinstance(CONFIG.value, config_dict.ConfigDict):
            # ml_collections keeps this error until the configuration is first used.
            name = config_flags.get_config_filename(flags.FLAGS["config"])
            raise flags.Error(f"--config={name}: there is no such file")
        return rest
    except AttributeError as error:
        # A key that a locked configuration does not have. The text is inside a
        # KeyError, whose own text is quoted.
        inner = error.args[0]
        text = inner.args[0] if isinstance(inner, KeyError) else str(error)
        _stop(f"the configuration has no setting {' '.join(text.split())}")
    except (flags.Error, OSError) as error:
        # config_flags puts the traceback of an error in a configuration file here.
        message = re.sub(r"Pass --help\S* .*", "", str(error)).strip()
        errors = re.findall(r"^\s*\w*Error: (.*)$", message, re.MULTILINE)
        _stop(errors[-1] if errors else message)


def _stop(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
