"""Breaks the optimizer in one place at a time, and says which test notices.

    make mutants

Each mutant is a copy of the package in which one term of the rule is wrong; the tests
of the optimizer and of the norm run on it. A mutant that no test notices ends the
command with an error: a test is missing. About three minutes on two cores.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
TESTS = ("tests/optimizer_test.py", "tests/norms_test.py")


class Mutant(NamedTuple):
    """One wrong line."""

    name: str
    file: str
    right: str
    wrong: str


def _optimizer(name: str, right: str, wrong: str) -> Mutant:
    return Mutant(name, "lars/optimizer.py", right, wrong)


def _norm(name: str, right: str, wrong: str) -> Mutant:
    return Mutant(name, "lars/norms.py", right, wrong)


_NUMERATOR = "numerator = _as(trust_coefficient, w_norm) * w_norm"
_DENOMINATOR = "denominator = g_norm + _as(eps, g_norm)"
_STEP = "u[i] = _as(numerator, u[i]) * (u[i] / _as(denominator, u[i]))"
_RATIO = "ratio = (numerator / denominator).astype(jnp.float32)"
_CHAIN = """            optax.scale_by_learning_rate(learning_rate),
            optax.trace(momentum, nesterov, accumulator_dtype),"""

MUTANTS = (
    _optimizer("ratio constant", _STEP, "u[i] = u[i] * _as(trust_coefficient, u[i])"),
    _optimizer(
        "ratio inverted",
        _STEP,
        "u[i] = _as(denominator, u[i]) * (u[i] / _as(numerator, u[i]))",
    ),
    _optimizer(
        "ratio squared", _STEP, _STEP + "; u[i] *= _as(numerator / denominator, u[i])"
    ),
    _optimizer("ratio without ‖w‖", _NUMERATOR, _NUMERATOR.replace(" * w_norm", "")),
    _optimizer(
        "ratio without ‖g‖",
        _DENOMINATOR,
        _DENOMINATOR.replace("g_norm +", "0 * g_norm +", 1),
    ),
    _optimizer("ratio without η", _NUMERATOR, "numerator = w_norm"),
    _optimizer(
        "L1 norms",
        "from lars.norms import accumulation_dtype, l2_norm",
        "from lars.norms import accumulation_dtype\n"
        "def l2_norm(x): return jnp.sum(jnp.abs(x))",
    ),
    _optimizer(
        "norm of the sum g + βw",
        "l2_norm(g[i]) for i in members",
        "l2_norm(u[i]) for i in members",
    ),
    _optimizer("decay not in the step", "g_i + _as(beta, g_i) * w_i if", "g_i if"),
    _optimizer("decay not in the ratio", "_as(_as(beta, decayed_norm) *", "_as(0 *"),
    _optimizer("decay subtracted", "g_i + _as(beta, g_i)", "g_i - _as(beta, g_i)"),
    _optimizer(
        "decay masks ignored in the ratio",
        "_joint_norm(w_norms[i] for i in members if is_decayed[i])",
        "_joint_norm(w_norms.values())",
    ),
    _optimizer("eps ignored", "g_norm + _as(eps, g_norm)", "g_norm + 0"),
    _optimizer("eps in the numerator", "* w_norm\n", "* (w_norm + _as(eps, w_norm))\n"),
    _optimizer(
        "learning rate outside the momentum",
        _CHAIN,
        "\n".join(_CHAIN.split("\n")[::-1]),
    ),
    _optimizer("Nesterov ignored", "momentum, nesterov,", "momentum, False,"),
    _optimizer("Nesterov always", "momentum, nesterov,", "momentum, True,"),
    _optimizer("no momentum", "optax.trace(momentum,", "optax.trace(0.0,"),
    _optimizer("ascent", "rate(learning_rate)", "rate(learning_rate, flip_sign=False)"),
    _optimizer(
        "zero rule: never used", "(w_norm == 0) | (denominator == 0)", "w_norm < 0"
    ),
    _optimizer("zero rule: zero weights ignored", "(w_norm == 0) | (denom", "(denom"),
    _optimizer(
        "zero rule: used for a zero gradient",
        "(w_norm == 0) |",
        "(w_norm == 0) | (g_norm == 0) |",
    ),
    _optimizer(
        "zero rule: η and 1 exchanged",
        '"trust_coefficient": _as(trust_coefficient, w_norm)',
        '"trust_coefficient": jnp.ones_like(w_norm)',
    ),
    _optimizer(
        "ratio reported is another", _RATIO, _RATIO.replace("numerator /", "1 /")
    ),
    _optimizer("layers not shared", "lambda path: path[:-1]", "lambda path: path"),
    _optimizer(
        "layers always shared", "lambda path: path\n", "lambda path: path[:-1]\n"
    ),
    _optimizer("ratio mask ignored", "if is_adapted[i]:", "if True:"),
    _optimizer(
        "masks exchanged",
        "_flat_mask(weight_decay_mask,",
        "_flat_mask(trust_ratio_mask,",
    ),
    _optimizer(
        "schedule of decay stuck", "weight_decay(state.count)", "weight_decay(0)"
    ),
    _optimizer(
        "count not advanced", "optax.safe_increment(state.count)", "state.count"
    ),
    _optimizer("ratio multiplied first", _STEP, "u[i] = _as(ratio, u[i]) * u[i]"),
    _optimizer("dtypes not kept", "new.astype(jnp.asarray(old).dtype)", "new"),
    _optimizer(
        "rounded after every link",
        "optax.GradientTransformationExtraArgs(inner.init, update_fn)",
        "inner",
    ),
    _norm("norm: no second range", "cond(safe,", "cond(True,"),
    _norm("norm: subnormals flushed", "units * _power", "0 * units * _power"),
    _norm(
        "norm: subnormal result flushed",
        "jnp.where(underflows, subnormal, norm)",
        "norm",
    ),
    _norm("norm: not widened", "x.astype(accumulation_dtype(x.dtype))", "x"),
    _norm(
        "norm: gradient NaN at zero",
        "jnp.where(scaled_norm == 0, 1, scaled_norm)",
        "scaled_norm",
    ),
)


def first_failure(mutant: Mutant) -> str | None:
    """Runs the tests on the mutant; the first that fails, or None."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for folder in ("lars", "tests"):
            shutil.copytree(ROOT / folder, copy / folder)
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / mutant.file
        source = file.read_text()
        if source.count(mutant.right) != 1:
            raise ValueError(
                f"mutant {mutant.name!r}: {mutant.right!r} is in {mutant.file} "
                f"{source.count(mutant.right)} times, not once."
            )
        file.write_text(source.replace(mutant.right, mutant.wrong))
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                *TESTS,
            ],
            cwd=copy,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) \S*::(\S+)", result.stdout, re.MULTILINE)
    if not found:
        raise RuntimeError(f"mutant {mutant.name!r}: {result.stdout}{result.stderr}")
    return found[1]


def main() -> None:
    """Prints which test notices each mutant; exits with 1 if one survives."""
    with ThreadPoolExecutor(2) as pool:
        failures: Iterator[str | None] = pool.map(first_failure, MUTANTS)
        survivors = 0
        for mutant, failure in zip(tqdm(MUTANTS, unit="mutant"), failures, strict=True):
            survivors += failure is None
            tqdm.write(f"{mutant.name:40} {failure or 'SURVIVED'}")
    print(f"{len(MUTANTS) - survivors} of {len(MUTANTS)} mutants noticed.")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
