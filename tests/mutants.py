"""Breaks the code in one place at a time, and says which test notices.

    make mutants

Each mutant is a copy of the package in which one line is wrong, most of them a term of
the rule; the tests of that module run on it. A mutant that no test notices ends the
command with an error: a test is missing. About ten minutes on two cores.
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
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")
TESTS = {
    "lars/optimizer.py": ("tests/optimizer_test.py",),
    "lars/norms.py": ("tests/norms_test.py", "tests/optimizer_test.py"),
    "lars/scaled.py": ("tests/norms_test.py", "tests/optimizer_test.py"),
    "lars/training.py": ("tests/training_test.py",),
    "lars/rescue.py": ("tests/rescue_test.py",),
    "lars/optimizers.py": ("tests/optimizers_test.py",),
}


class Mutant(NamedTuple):
    """One wrong line."""

    name: str
    file: str
    right: str
    wrong: str


NUMERATOR = "numerator = times(trust_coefficient, w_norm)"
DENOMINATOR = "total(g_norm, times(beta, decayed_norm), scaled(eps, dtype))"
STEP = "u[i] = multiply_by_ratio(u[i], numerator, denominator)"
CHAIN = """            optax.scale_by_learning_rate(learning_rate),
            optax.trace(momentum, nesterov, accumulator_dtype),"""

# File, then for each mutant its name, what is right, and what is wrong.
TABLE = {
    "lars/optimizer.py": (
        ("ratio constant", STEP, "u[i] = u[i] * _as(trust_coefficient, u[i])"),
        (
            "ratio inverted",
            STEP,
            "u[i] = multiply_by_ratio(u[i], denominator, numerator)",
        ),
        ("ratio squared", STEP, f"{STEP}; {STEP}"),
        (
            "ratio without ‖w‖",
            NUMERATOR,
            "numerator = scaled(trust_coefficient, dtype)",
        ),
        (
            "ratio without ‖g‖",
            DENOMINATOR,
            DENOMINATOR.replace("g_norm", "scaled(1, dtype)"),
        ),
        ("ratio without η", NUMERATOR, "numerator = w_norm"),
        (
            "L1 norms",
            "from lars.scaled import",
            "scaled_l2_norm = lambda x: scaled(jnp.sum(jnp.abs(x)), x.dtype)\n"
            "from lars.scaled import",
        ),
        (
            "norm of the sum g + βw",
            "scaled_l2_norm(g[i]) for i in members",
            "scaled_l2_norm(u[i]) for i in members",
        ),
        ("decay not in the step", "g_i + _as(beta, g_i) * w_i if", "g_i if"),
        (
            "decay not in the ratio",
            "times(beta, decayed_norm)",
            "times(0.0, decayed_norm)",
        ),
        ("decay subtracted", "g_i + _as(beta, g_i)", "g_i - _as(beta, g_i)"),
        (
            "decay mask ignored in the ratio",
            "joint_norm(w_norms[i] for i in members if is_decayed[i])",
            "w_norm",
        ),
        ("eps ignored", "scaled(eps, dtype)", "scaled(0.0, dtype)"),
        (
            "learning rate outside the momentum",
            CHAIN,
            "\n".join(CHAIN.split("\n")[::-1]),
        ),
        ("Nesterov ignored", "momentum, nesterov,", "momentum, False,"),
        ("Nesterov always", "momentum, nesterov,", "momentum, True,"),
        ("no momentum", "optax.trace(momentum,", "optax.trace(0.0,"),
        ("ascent", "rate(learning_rate)", "rate(learning_rate, flip_sign=False)"),
        (
            "zero rule never used",
            "(w_norm.fraction == 0) | (denominator.fraction == 0)",
            "w_norm.fraction < 0",
        ),
        ("zero rule not for zero weights", "(w_norm.fraction == 0) | (den", "(den"),
        ("zero rule not for 0/0", "| (denominator.fraction == 0)", "| False"),
        (
            "zero rule for a zero gradient",
            "(w_norm.fraction == 0) |",
            "(w_norm.fraction == 0) | (g_norm.fraction == 0) |",
        ),
        (
            "zero rule with 1 for η",
            '"trust_coefficient": trust_coefficient, "one"',
            '"trust_coefficient": 1.0, "one"',
        ),
        (
            "another ratio reported",
            "ratio(numerator, denominator)",
            "ratio(denominator, numerator)",
        ),
        ("layers never shared", "lambda path: path[:-1]", "lambda path: path"),
        ("layers always shared", "lambda path: path\n", "lambda path: path[:-1]\n"),
        ("ratio mask ignored", "if is_adapted[i]:", "if True:"),
        (
            "masks exchanged",
            "_flat_mask(weight_decay_mask,",
            "_flat_mask(trust_ratio_mask,",
        ),
        ("schedule of decay stuck", "weight_decay(state.count)", "weight_decay(0)"),
        ("count not advanced", "optax.safe_increment(state.count)", "state.count"),
        (
            "ratio formed first",
            STEP,
            "u[i] *= _as(ratio(numerator, denominator), u[i])",
        ),
        ("dtypes not kept", "new.astype(jnp.asarray(old).dtype)", "new"),
        (
            "rounded after every link",
            "optax.GradientTransformationExtraArgs(inner.init, update_fn)",
            "inner",
        ),
    ),
    "lars/norms.py": (
        ("one range only", "cond(\n        is_safe,", "cond(\n        True,"),
        (
            "subnormal elements flushed",
            "units * power_of_two",
            "0 * units * power_of_two",
        ),
        ("subnormal norms flushed", "jnp.where(underflows, subnormal, norm)", "norm"),
        ("margin too small", "2.0 ** (info.nmant + 3)", "1.0"),
        ("gradient NaN at zero", "jnp.where(norm == 0, 1, norm)", "norm"),
        (
            "joint norm not aligned",
            "fractions, exponent = align(*norms)",
            "fractions, exponent = [n.fraction for n in norms], norms[0].exponent",
        ),
        (
            "joint norm the sum",
            "norm = scaled_l2_norm(jnp.stack(fractions))",
            "norm = scaled(sum(fractions), jnp.float32)",
        ),
    ),
    "lars/scaled.py": (
        (
            "ratio without exponents",
            "numerator.exponent - denominator.exponent,",
            "0 * numerator.exponent,",
        ),
        (
            "exponent of the denominator lost",
            "(x, -denominator.exponent)",
            "(x, 0 * denominator.exponent)",
        ),
        (
            "exponent of the numerator lost",
            "(x, numerator.exponent)",
            "(x, 0 * numerator.exponent)",
        ),
        ("powers of two in one factor", "half = exponent >> 1", "half = 0 * exponent"),
        (
            "zeros decide the exponent",
            "x.fraction == 0, lowest",
            "x.fraction < 0, lowest",
        ),
    ),
    "lars/training.py": (
        (
            "test accuracy of the validation set",
            "evaluate(state, data.test)",
            "evaluate(state, data.validation)",
        ),
        ("evaluation in training mode", "split.images, False)", "split.images, True)"),
        (
            "parameters not looked at for divergence",
            "jnp.isfinite(x).all() for",
            "True | jnp.isfinite(x).all() for",
        ),
        (
            "NaN logits may be right",
            "correct &= jnp.isfinite(logits)",
            "correct &= True | jnp.isfinite(logits)",
        ),
        (
            "every epoch alike",
            "fold_in(data_key, epoch)",
            "fold_in(data_key, 0 * epoch)",
        ),
        (
            "kernels not scaled",
            'scale_kernels(variables["params"], run.kernel_scales)',
            'variables["params"]',
        ),
    ),
    "lars/rescue.py": (
        ("threshold not at scale 1", ' & (table["init_scale"] == 1.0)', ""),
        (
            "rates chosen on test data",
            'columns="init_scale", values="validation"',
            'columns="init_scale", values="test"',
        ),
        (
            "best rate chosen on test data",
            'sort=False)["validation"].idxmax()',
            'sort=False)["test"].idxmax()',
        ),
        (
            "one rate chosen on test data",
            'rescued=table["validation"] >= standard',
            'rescued=table["test"] >= standard',
        ),
        (
            "diverged runs count",
            'mask(results["diverged"], 0.0)',
            'mask(~results["diverged"], results[column])',
        ),
    ),
    "lars/optimizers.py": (
        ("another power", "power=2", "power=3"),
        ("optimizers exchanged", '"lamb": optax.lamb', '"lamb": optax.adam'),
    ),
}
MUTANTS = [
    Mutant(row[0], file, *row[1:]) for file, rows in TABLE.items() for row in rows
]


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
            [*PYTEST, *TESTS[mutant.file]],
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
