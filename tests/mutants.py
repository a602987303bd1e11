"""Breaks the code in one place at a time, and says which test notices.

    make mutants

Each mutant is a copy of the package in which one line is wrong, most of them a term of
the rule; the tests of that module run on it. A mutant that no test notices ends the
command with an error: a test is missing. About an hour on two cores.
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
OPTIMIZER = tuple(
    f"tests/{name}_test.py"
    for name in ("optimizer", "families", "faults", "layers", "presets", "norms")
)
SHARDED = (*OPTIMIZER, "tests/sharding_test.py")
TESTS = {
    "lars/optimizer.py": OPTIMIZER,
    "lars/layers.py": OPTIMIZER,
    "lars/rules.py": ("tests/layers_test.py", "tests/ecosystem_test.py"),
    "lars/norms.py": SHARDED,
    "lars/scaled.py": OPTIMIZER,
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


STEP = """        step = _multiplied(u[i], factor[kind][i], split)
"""

# File, then for each mutant its name, what is right, and what is wrong.
TABLE = {
    "lars/optimizer.py": (
        ("ratio constant", STEP, "        step = u[i] * 0.01\n"),
        (
            "ratio inverted",
            "formula = ratio(times(eta, joint_w), denominator)",
            "formula = ratio(denominator, times(eta, joint_w))",
        ),
        ("ratio applied twice", STEP, STEP + STEP.replace("u[i]", "step")),
        (
            "ratio without ‖w‖",
            "ratio(times(eta, joint_w)",
            "ratio(scaled(eta + 0 * joint_w.fraction, dtype)",
        ),
        (
            "ratio without ‖g‖",
            "direction_norm = joint_x\n",
            "direction_norm = joint_x = scaled(0 * joint_x.fraction + 1, dtype)\n",
        ),
        ("ratio without η", "ratio(times(eta, joint_w)", "ratio(times(1.0, joint_w)"),
        (
            "decay not in the step",
            "d[i] = g[i] + _as(beta, g[i]) * w[i]",
            "d[i] = g[i]",
        ),
        ("decay subtracted", "g[i] + _as(beta, g[i])", "g[i] - _as(beta, g[i])"),
        (
            "decay not in the ratio",
            "times(beta, plan.joint(decayed_norm))",
            "times(0.0, plan.joint(decayed_norm))",
        ),
        (
            "decay mask ignored in the ratio",
            "jnp.where(decays, w_norm.fraction, 0)",
            "w_norm.fraction",
        ),
        ("decay always in the ratio", 'if o.denominator == "sum" else', "if True else"),
        (
            "decoupled decay in the ratio",
            'any(is_decayed) and o.weight_decay_kind != "decoupled"',
            "any(is_decayed)",
        ),
        (
            "decoupled decay also coupled",
            'if decayed and o.weight_decay_kind == "coupled"',
            'if decayed and o.weight_decay_kind != "outside"',
        ),
        (
            "outside decay also coupled",
            'decayed and o.weight_decay_kind == "coupled"',
            'decayed and o.weight_decay_kind != "decoupled"',
        ),
        (
            "outside decay without γ",
            "times(rate, times(beta, layers.ratio))",
            "times(one, times(beta, layers.ratio))",
        ),
        (
            "outside decay without λ",
            "times(beta, layers.ratio)",
            "scaled(beta + 0 * rate, dtype)",
        ),
        ("decoupled decay without γ", "_as(gamma[i], w[i]) * (_as(beta", "(_as(beta"),
        ("eps ignored", "scaled(o.eps, dtype)", "scaled(0.0, dtype)"),
        (
            "other norms measured",
            '"gradient": g, "decayed": d',
            '"gradient": d, "decayed": g',
        ),
        ("norm of the gradient for the sum", '"sum": g,', '"sum": d,'),
        ("norm of the gradient for the update", '"update": u}', '"update": g}'),
        ("step in the buffer is the direction", '"step": rate,', '"step": one,'),
        ("rate in the buffer of directions", '"direction": one,', '"direction": rate,'),
        (
            "no rate after the buffer of gradients",
            '"gradient": rate}',
            '"gradient": one}',
        ),
        (
            "no rate after the buffer of directions",
            "step = _as(gamma[i], step) * step",
            "pass",
        ),
        ("no momentum", "new_v = _as(m, x) * v.astype(x.dtype) + x", "new_v = x"),
        ("Nesterov ignored", "if o.nesterov else new_v)", "if False else new_v)"),
        ("Nesterov always", "if o.nesterov else new_v)", "if True else new_v)"),
        (
            "Nesterov without the increment",
            "(_as(o.momentum, x) * new_v + x if",
            "(_as(o.momentum, x) * new_v if",
        ),
        (
            "dampening ignored",
            "x if _is_known_zero(o.dampening) else",
            "x if True else",
        ),
        ("dampening inverted", "(1 - _as(o.dampening, x))", "_as(o.dampening, x)"),
        (
            "correction ignored",
            "if not o.momentum_correction:\n        return",
            "if True:\n        return",
        ),
        (
            "correction inverted",
            "relative = rates[number] / jnp.where(last > 0, last, 1)",
            "relative = jnp.where(last > 0, last, 1) / rates[number]",
        ),
        (
            "lookahead corrected",
            "(_as(o.momentum, x) * new_v + x if",
            "(_as(m, x) * new_v + x if",
        ),
        ("ascent", "new_updates.append((-step)", "new_updates.append((step)"),
        ("bound of the direction ignored", "x if bound is None else", "x if True else"),
        (
            "bound of the direction on one side",
            "jnp.clip(x, -_as(bound, x), _as(bound, x))",
            "jnp.minimum(x, _as(bound, x))",
        ),
        ("lower bound ignored", "if low > 0:", "if False:"),
        ("upper bound ignored", "if high < math.inf:", "if False:"),
        ("clip ignored", "    if o.clip:\n", "    if False:\n"),
        (
            "clip without the rate",
            "value(x) >= gamma, scaled(1.0",
            "value(x) >= 1, scaled(1.0",
        ),
        (
            "clip inverted",
            "value(x) >= gamma, scaled(1.0",
            "value(x) < gamma, scaled(1.0",
        ),
        (
            "zero rule never used",
            "is_zero = w_is_zero | (denominator.fraction == 0)",
            "is_zero = w_is_zero & False",
        ),
        (
            "zero rule not for zero weights",
            "is_zero = w_is_zero | (denominator",
            "is_zero = (denominator",
        ),
        (
            "zero rule not for 0/0",
            "is_zero = w_is_zero | (denominator.fraction == 0)",
            "is_zero = w_is_zero",
        ),
        (
            "zero rule with 1 for η",
            '"trust_coefficient": eta, "one"',
            '"trust_coefficient": 1.0, "one"',
        ),
        (
            "rule of the zero gradient ignored",
            'if o.zero_gradient != "formula":',
            "if False:",
        ),
        (
            "rule of the zero gradient for zero weights",
            "(joint_x.fraction == 0) & ~w_is_zero",
            "(joint_x.fraction == 0)",
        ),
        (
            "plain steps clipped",
            "exempt = is_plain | ~is_adapted",
            "exempt = ~is_adapted",
        ),
        (
            "excluded parameters clipped",
            "exempt = is_plain | ~is_adapted",
            "exempt = is_plain",
        ),
        ("smallest norm ignored", "if _is_known_zero(min_norm):", "if True:"),
        (
            "own rates ignored",
            "gamma = [rates[k] for k in plan.rates]",
            "gamma = [rates[0] for k in plan.rates]",
        ),
        (
            "own rates ignored in the ratio",
            "    if len(rates) > 1:\n",
            "    if False:\n",
        ),
        (
            "momentum of excluded parameters as of others",
            "o.momentum_of if adapted else o.excluded_momentum_of",
            "o.momentum_of",
        ),
        (
            "schedule of decay stuck",
            "beta = _at(o.weight_decay, state.count)",
            "beta = _at(o.weight_decay, 0)",
        ),
        ("schedules of rates stuck", "_at(rate, state.count)", "_at(rate, 0)"),
        (
            "count not advanced",
            "optax.safe_increment(state.count), state.count)",
            "state.count, state.count)",
        ),
        (
            "count advanced in skipped steps",
            "jnp.where(happened, optax.safe",
            "jnp.where(True, optax.safe",
        ),
        ("layers that are not finite step", "step = jnp.where(kept, 0, step)", "pass"),
        (
            "their momentum not kept",
            "new_v = jnp.where(kept, v.astype(x.dtype), new_v)",
            "pass",
        ),
        (
            "their momentum of gradients not kept",
            "new_v[i] = jnp.where(kept, v[i], new_v[i])",
            "pass",
        ),
        ("skipped steps not counted", "(~layers.was_finite).astype(jnp.int32)", "0"),
        (
            "only the layer skips, not the step",
            'if o.nonfinite == "skip_step":\n        is_finite',
            "if False:\n        is_finite",
        ),
        (
            "weights not looked at",
            "jnp.isfinite(joint_x.fraction) & jnp.isfinite(joint_w.fraction)",
            "jnp.isfinite(joint_x.fraction)",
        ),
        (
            "gradients not looked at",
            "jnp.isfinite(joint_x.fraction) & jnp.isfinite(joint_w.fraction)",
            "jnp.isfinite(joint_w.fraction)",
        ),
        (
            "excluded gradients not looked at",
            'needed = [x or o.nonfinite != "propagate" for',
            "needed = [x for",
        ),
        (
            "spectral direction not orthogonal",
            "_orthogonalized(o.spectral, x, plan, i) if plan.is_adapted[i] else x",
            "x",
        ),
        (
            "spectral step with the Euclidean norm",
            "w_norm = _spectral_norms(w, plan, dtype)",
            "w_norm = _norms(w, plan.is_adapted, plan, dtype)",
        ),
        (
            "another ratio reported",
            "trust_ratio = value(layers.ratio)",
            "trust_ratio = 2 * value(layers.ratio)",
        ),
        (
            "ratio formed first",
            "    for number in by:\n        x = x * spread(number, "
            "split, x.shape).astype(x.dtype)\n",
            "    x = x * spread(by[0] * by[1], split, x.shape).astype(x.dtype)\n",
        ),
        (
            "dtypes of updates not kept",
            "(-step).astype(jnp.result_type(old_updates[i]))",
            "-step",
        ),
        (
            "dtypes of the buffer not kept",
            "new_v[i].astype(jnp.result_type(old_traces[i]))",
            "new_v[i]",
        ),
    ),
    "lars/layers.py": (
        ("layers never shared", "[path[:-1] for path in key_paths]", "list(key_paths)"),
        (
            "layers always shared",
            'if self.layer == "parameter":\n            return list(key_paths)',
            'if self.layer == "parameter":\n            return '
            "[p[:-1] for p in key_paths]",
        ),
        (
            "selections never share",
            "labels[i] = number if chosen else labels[i]",
            "pass",
        ),
        ("ratio mask ignored", 'label if adapted else ("excluded", path)', "label"),
        (
            "masks exchanged",
            'flat_mask("weight_decay_mask", self.weight_decay_mask, params)',
            "is_adapted",
        ),
        (
            "the last rule holds",
            "reversed(list(enumerate(self.learning_rates, 1)))",
            "list(enumerate(self.learning_rates, 1))",
        ),
        ("own rates of nobody", "rates[i] = number if chosen else rates[i]", "pass"),
        (
            "nothing stacked",
            "axes[i] = tuple(n % rank for n in numbers)",
            "axes[i] = ()",
        ),
        (
            "joint norm not aligned",
            "power_of_two(exponent - largest[:, None], dtype)",
            "power_of_two(exponent * 0, dtype)",
        ),
        (
            "joint norm the sum",
            "square = jnp.sum(fraction * fraction, axis=1)",
            "square = jnp.sum(fraction, axis=1) ** 2",
        ),
        (
            "joint norm of the first",
            "square = jnp.sum(fraction * fraction, axis=1)",
            "square = fraction[:, 0] ** 2",
        ),
        (
            "values of layers not given to their slices",
            "of_layers if self.members.shape[1] == 1 else of_layers[self.layer_of]",
            "jnp.resize(of_layers, self.layer_of.shape)",
        ),
    ),
    "lars/rules.py": (
        (
            "not ignored",
            "lambda chosen: not chosen, self(params)",
            "lambda chosen: chosen, self(params)",
        ),
        ("and is or", "a and b, self(params)", "a or b, self(params)"),
        ("or is and", "a or b, self(params)", "a and b, self(params)"),
        ("nothing may be selected", "if required and named", "if False and named"),
        ("any condition is enough", "all(holds(", "any(holds("),
        ("boxes in paths", "is_boxed = path and", "is_boxed = False and"),
    ),
    "lars/norms.py": (
        (
            "one range only",
            "lambda carry: ~carry[0], rescue",
            "lambda carry: False & carry[0], rescue",
        ),
        (
            "subnormal elements flushed",
            "units * power_of_two",
            "0 * units * power_of_two",
        ),
        ("subnormal norms flushed", "jnp.where(underflows, subnormal, norm)", "norm"),
        ("margin too small", "2.0 ** (info.nmant + 3)", "1.0"),
        (
            "gradient NaN at zero",
            "rescaled / jnp.where(norm == 0, 1, norm)",
            "rescaled / norm",
        ),
        (
            "groups not put in order",
            "return Scaled(fraction[order], exponent[order])",
            "return Scaled(fraction, exponent)",
        ),
        (
            "local norms not summed",
            "flat, start = collective(flat, mesh_axes), 0",
            "start = 0",
        ),
        (
            "local layers at the first place",
            "jax.lax.axis_index(names) * group.shape[axis] if names",
            "jnp.int32(0) if names",
        ),
        (
            "first layers for all parts",
            "start = jax.lax.axis_index(names) * shape[axis]",
            "start = 0",
        ),
        ("safe norms rescaled", "jnp.where(safe, 0, exponent)", "exponent"),
        (
            "L1 norms",
            "return _reduce(jnp.sum, x * x, group)",
            "return _reduce(jnp.sum, jnp.abs(x), group) ** 2",
        ),
    ),
    "lars/scaled.py": (
        (
            "ratio without exponents",
            "n.fraction / d.fraction, n.exponent - d.exponent",
            "n.fraction / d.fraction, 0 * n.exponent",
        ),
        (
            "size not regarded",
            "first = jnp.clip(middle - s.exponent, -bound, bound)",
            "first = 0 * middle",
        ),
        (
            "second factor without the first",
            "multiply_by_power_of_two(r.fraction, r.exponent - first)",
            "multiply_by_power_of_two(r.fraction, r.exponent)",
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
