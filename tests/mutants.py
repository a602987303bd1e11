"""Breaks the code in one place at a time, and says which test notices.

    make mutants

Each mutant is a copy of the package in which one line is wrong, most of them a term of
the rule; the tests of that module run on it. A mutant that no test notices ends the
command with an error: a test is missing. About two hours on two cores.
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
    for name in (
        "optimizer",
        "families",
        "faults",
        "layers",
        "presets",
        "norms",
        "spectral",
    )
)
SHARDED = (*OPTIMIZER, "tests/sharding_test.py")
TESTS = {
    "lars/optimizer.py": OPTIMIZER,
    "lars/layers.py": OPTIMIZER,
    "lars/rules.py": ("tests/layers_test.py", "tests/ecosystem_test.py"),
    "lars/norms.py": SHARDED,
    "lars/scaled.py": OPTIMIZER,
    "lars/spectral.py": ("tests/spectral_test.py",),
    "lars/presets.py": ("tests/presets_test.py",),
    "lars/training.py": ("tests/training_test.py",),
    "lars/rescue.py": ("tests/rescue_test.py",),
    "lars/coverage.py": ("tests/plane_test.py", "-k", "not hard_start"),
    "lars/figures/plane/starts.py": ("tests/plane_test.py", "-k", "represents"),
    "lars/figures/plane/follow.py": (
        *("tests/plane_test.py", "-k", "rank or observed or followed"),
    ),
    "lars/figures/plane/mechanism.py": ("tests/plane_test.py", "-k", "least_steps"),
    "lars/kernels.py": ("tests/kernels_test.py",),
    "lars/initialization.py": ("tests/initialization_test.py",),
    "lars/polar_optimizer.py": ("tests/polar_optimizer_test.py",),
    "lars/waking.py": ("tests/waking_test.py",),
    "lars/optimizers.py": ("tests/optimizers_test.py",),
    "lars/schedules.py": ("tests/schedules_test.py",),
    "lars/models/convolution.py": ("tests/convolution_test.py",),
    "lars/single_run.py": ("tests/single_run_test.py", "tests/training_test.py"),
    "lars/figures/paper/grid.py": ("tests/paper_proxies_test.py",),
    "lars/figures/runs.py": ("tests/paper_proxies_test.py",),
    "experiments/figures.py": ("tests/figures_test.py", "-k", "not quick_version"),
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
        (
            "no momentum",
            "new_v = _as(o.momentum, x) * v.astype(x.dtype) + x",
            "new_v = x",
        ),
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
            "if v is None or not o.momentum_correction:",
            "if True:",
        ),
        (
            "correction inverted",
            "relative = rates[number] / jnp.where(last > 0, last, 1)",
            "relative = jnp.where(last > 0, last, 1) / rates[number]",
        ),
        (
            "lookahead from the old buffer",
            "(_as(o.momentum, x) * new_v + x if",
            "(_as(o.momentum, x) * v.astype(x.dtype) + x if",
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
            "where(is_plain, ratio_, _clipped(o, ratio_, gamma))",
            "_clipped(o, ratio_, gamma)",
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
            "new_v = jnp.where(kept, keep.astype(x.dtype), new_v)",
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
            "(-step).astype(dtypes[i])",
            "-step",
        ),
        (
            "dtypes of the buffer not kept",
            "_saturated(new_v[i], jnp.result_type(old_traces[i]))",
            "new_v[i]",
        ),
        ("momentum overflows", "jnp.clip(x, -largest, largest).astype", "x.astype"),
        ("momentum copied", "    if x.dtype == dtype:\n        return x\n", ""),
        (
            "dtype of the gradients",
            "jnp.promote_types(jnp.result_type(x), jnp.result_type(y))",
            "jnp.result_type(x)",
        ),
        (
            "a kept momentum of an old rate",
            'keep = v[i] if o.nonfinite == "skip_step" else old',
            "keep = v[i]",
        ),
        (
            "a kept momentum of a rate that never was",
            'keep = v[i] if o.nonfinite == "skip_step" else old',
            "keep = old",
        ),
        (
            "weights of excluded parameters not looked at",
            "(w, needed)], plan",
            "(w, plan.is_adapted)], plan",
        ),
        (
            "smallest norm of weights ignored",
            "joint_w = _nonzero_above(o.min_norm, plan.joint(w_norm))",
            "joint_w = plan.joint(w_norm)",
        ),
        (
            "smallest norm of gradients ignored",
            "joint_x = _nonzero_above(o.min_norm, joint_x)",
            "pass",
        ),
        (
            "smallest norm of arrays",
            "joint_w = _nonzero_above(o.min_norm, plan.joint(w_norm))",
            "joint_w = plan.joint(_nonzero_above(o.min_norm, w_norm))",
        ),
        (
            "the gradient decides for the decay",
            "        measured = u\n",
            "        pass\n",
        ),
        (
            "factors not computed first",
            "lambda carry: carry[0] < 0",
            "lambda carry: carry[0] < 1",
        ),
        (
            "shape of the momentum not looked at",
            "if buffers != expected or layers",
            "if layers",
        ),
        (
            "layout of the state not looked at",
            "or layers != expected_layers:",
            ":",
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
        ("kernels at the top are one module", "if len(joined) > 1:", "if False:"),
        ("biases at the top are kernels", "and rank > 1", "and rank > 0"),
        (
            "stacks at the top are kernels",
            "len(shape) - len(split.layer_axes)",
            "len(shape)",
        ),
        (
            "excluded kernels at the top are joined",
            "if adapted and len(path) == 1",
            "if len(path) == 1",
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
        (
            "what is not a selection composes",
            "if not isinstance(other, Selection):",
            "if False:",
        ),
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
    "lars/spectral.py": (
        ("steps without the cubic term", "b * gram + c *", "c *"),
        ("steps without the quintic term", " + c * product(gram, gram)", ""),
        ("steps without the linear term", "a * x + product", "product"),
        (
            "one quintic left out",
            "    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),\n",
            "",
        ),
        ("a coefficient off by 2 %", "(2.300652019954817,", "(2.25,"),
        (
            "no exact last step",
            "_LAST_QUINTIC = (1.875, -1.25, 0.375)",
            "_LAST_QUINTIC = _QUINTICS[2]",
        ),
        ("no margin for rounding", "_STRETCH = 1.02", "_STRETCH = 1.0"),
        (
            "margin in σ alone",
            "_STRETCH ** np.array([1, 3, 5])",
            "_STRETCH ** np.array([1, 1, 1])",
        ),
        ("steps ignored", "stretched[:steps], last", "stretched, last"),
        ("seven steps at most", "max(0, steps - len(_QUINTICS))", "min(1, steps // 8)"),
        ("not divided by the norm", "x = _unit(x, (-2, -1))", "x = x / 2"),
        (
            "a norm for the batch",
            "x = _unit(x, (-2, -1))",
            "x = _unit(x, tuple(range(x.ndim)))",
        ),
        ("no rescaling of the gradient", "    x, _ = _rescale_each(x)\n", ""),
        (
            "no rescaling of the norm",
            "    x, exponent = _rescale_each(x)\n",
            "    exponent = jnp.zeros(x.shape[:-2], jnp.int32)\n",
        ),
        (
            "a scale for the batch",
            "_magnitude(x), axis=(-2, -1), keepdims=True, initial=0)",
            "_magnitude(x), keepdims=True, initial=0)"
            " + jnp.zeros_like(_magnitude(x)[..., :1, :1])",
        ),
        (
            "exponent not kept in range",
            "    exponent = jnp.clip(exponent, -_bound(x.dtype), _bound(x.dtype))\n",
            "",
        ),
        ("vectors take the steps too", "if min(x.shape[-2:]) <= 1:", "if x.size == 0:"),
        (
            "the larger Gram matrix, polar factor",
            "is_wide = x.shape[-2] < x.shape[-1]",
            "is_wide = x.shape[-2] > x.shape[-1]",
        ),
        ("not transposed back", "return x.mT if is_wide else x", "return x"),
        (
            "the larger Gram matrix, norm",
            "x = x.mT if x.shape[-2] < x.shape[-1] else x",
            "x = x.mT if x.shape[-2] > x.shape[-1] else x",
        ),
        (
            "dtype ignored",
            "_product(x.astype(dtype), y.astype(dtype))",
            "_product(x, y)",
        ),
        (
            "sums in bfloat16",
            "preferred_element_type=accumulation_dtype(x.dtype)",
            "preferred_element_type=x.dtype",
        ),
        (
            "TF32",
            "precision=jax.lax.Precision.HIGHEST",
            "precision=jax.lax.Precision.DEFAULT",
        ),
        ("too few squarings", "squarings: int = 18", "squarings: int = 9"),
        ("squarings ignored", "length=squarings)", "length=18)"),
        (
            "power not normalised",
            "power = power / jnp.where(trace == 0, 1, trace)",
            "power = power",
        ),
        (
            "zero matrix divided by its trace",
            "jnp.where(trace == 0, 1, trace)",
            "trace",
        ),
        (
            "first column",
            "jnp.argmax(_length(power, -2), axis=-1, keepdims=True)",
            "jnp.zeros_like(jnp.argmax(_length(power, -2), axis=-1, keepdims=True))",
        ),
        ("shortest column", "jnp.argmax(_length", "jnp.argmin(_length"),
        (
            "start of the quotient not normalised",
            "v = _unit(jnp.take_along_axis(power, longest, axis=-1), -2)",
            "v = jnp.take_along_axis(power, longest, axis=-1)",
        ),
        (
            "row for column",
            "_length(power, -2), axis=-1, keepdims=True)",
            "_length(power[..., :1, :], -2), axis=-1, keepdims=True)",
        ),
        (
            "trace of the power for its norm",
            "return _length(_product(x, v), (-2, -1))[..., 0, 0]",
            "return _length(x, (-2, -1))[..., 0, 0]",
        ),
        (
            "no derivative of the norm",
            "return _length(_product(x, v), (-2, -1))",
            "return _length(_product(jax.lax.stop_gradient(x), v), (-2, -1))",
        ),
        ("unit of zero", "jnp.where(length == 0, 1, length)", "length"),
        (
            "derivative at zero",
            "jnp.sqrt(jnp.where(is_zero, 1, x))",
            "jnp.sqrt(squares)",
        ),
        (
            "rows and columns exchanged",
            "return batch, [axis for axis in others if axis not in columns], columns",
            "return batch, columns, [axis for axis in others if axis not in columns]",
        ),
        ("vectors as rows", "others[1:][-1:]", "others[-1:]"),
        ("inputs as rows alone", "others[1:][-1:]", "others[1:]"),
        ("outputs not heard of", "if output_axes is None:", "if True:"),
        (
            "batch axes not moved",
            "x = x.transpose(batch + rows + columns)\n",
            "",
        ),
        (
            "batch axes not moved back",
            "x.transpose(np.argsort(order))",
            "x.reshape(shape)",
        ),
        (
            "order for its inverse",
            "x.transpose(np.argsort(order))",
            "x.transpose(order)",
        ),
        (
            "batch axes sorted",
            "batch = [axis % ndim for axis in batch_axes]",
            "batch = [axis % ndim for axis in sorted(batch_axes)]",
        ),
        (
            "negative batch axes",
            "batch = [axis % ndim for axis in batch_axes]",
            "batch = list(batch_axes)",
        ),
        ("fewer steps by default", 'steps: int = 8\n    "', 'steps: int = 4\n    "'),
        (
            "fewer steps by default, function",
            "steps: int = 8, dtype",
            "steps: int = 6, dtype",
        ),
        (
            "bfloat16 by default",
            '    dtype: jax.typing.DTypeLike = jnp.float32\n    "',
            '    dtype: jax.typing.DTypeLike = jnp.bfloat16\n    "',
        ),
    ),
    "lars/figures/paper/grid.py": (
        (
            "rate chosen on test data",
            'validation=table["validation_accuracy"]',
            'validation=table["test_accuracy"]',
        ),
        (
            "choice blind to divergence",
            '["validation_accuracy"].mask(table["diverged"], 0.0)',
            '["validation_accuracy"]',
        ),
        (
            "report blind to divergence",
            '["test_accuracy"].mask(table["diverged"], 0.0)',
            '["test_accuracy"]',
        ),
        ("rates never scaled", "rate * factor **", "rate * 1 **"),
        (
            "decay restarted",
            '"restart_after_warmup": False',
            '"restart_after_warmup": True',
        ),
        ("no warm-up", 'settings["warmup_epochs"] * in_epoch', "0 * in_epoch"),
    ),
    "lars/figures/runs.py": (
        ("worst rate", ".idxmax()", ".idxmin()"),
        (
            "of equal rates the largest",
            "[measure].mean()",
            "[measure].mean()[::-1]",
        ),
    ),
    "experiments/figures.py": (
        ("parts computed twice", "not in held]", "is not None]"),
        (
            "float32 widened",
            ".astype(str).astype(np.float64)",
            ".astype(np.float64)",
        ),
        (
            "rows of other parts",
            "parts = [held[tuple(cell.values())] for cell in cells]",
            "parts = [kept]",
        ),
    ),
    "lars/training.py": (
        (
            "a run that is over goes on",
            "(state.step < num_steps) & is_alive",
            "state.step < num_steps",
        ),
        (
            "curve of the last norms",
            "*(norm.mean(axis=0) for norm in norms),",
            "*(norm[-1] for norm in norms),",
        ),
        (
            "curve without its first steps",
            "before = init(run, data), num_steps % num_points",
            "before = init(run, data), 0",
        ),
        (
            "test accuracy of the validation set",
            "evaluate(state, data, data.test)",
            "evaluate(state, data, data.validation)",
        ),
        (
            "evaluation in training mode",
            "model.apply(state.variables, images, None)",
            "model.apply(state.variables, images, jax.random.key(0))",
        ),
        (
            "parameters not looked at for divergence",
            "jnp.isfinite(train_loss) & all_finite(state.variables)",
            "jnp.isfinite(train_loss)",
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
            "too few rates are taken",
            "if len(by_rate) < count:",
            "if False:",
        ),
        (
            "rates chosen on test data",
            'columns=cells, values="validation"',
            'columns=cells, values="test"',
        ),
        (
            "best rate chosen on test data",
            'cells["validation"].idxmax()',
            'cells["test"].idxmax()',
        ),
        (
            "one rate chosen on test data",
            'at_rate_of_most(table.assign(rescued=table["validation"] >= standard))',
            'at_rate_of_most(table.assign(rescued=table["test"] >= standard))',
        ),
        (
            "diverged runs count",
            'mask(results["diverged"], 0.0)',
            'mask(~results["diverged"], results[column])',
        ),
    ),
    "lars/coverage.py": (
        ("parts for percents", "{100 * row[column]:.1f}%", "{row[column]:.1f}%"),
        (
            "the deepest network sets the standard",
            'rows[rows["depth"] == rows["depth"].min()]',
            'rows[rows["depth"] == rows["depth"].max()]',
        ),
        (
            "one standard for all",
            'chosen["variant"].map(standard)',
            "max(standard.values())",
        ),
        (
            "judged on validation data",
            'chosen["test"] >= chosen',
            'chosen["validation"] >= chosen',
        ),
        (
            "chosen on test data",
            'rescued=table["validation"] >= table',
            'rescued=table["test"] >= table',
        ),
        ("diverged runs count", '~alone["diverged"] & reached', "reached"),
        ("all is represented", 'can[can["representable"]]', "can"),
        ("represented if something is", "]].min(axis=1)", "]].max(axis=1)"),
    ),
    "lars/kernels.py": (
        (
            "any bias side by side",
            "if all(i == top or i in of_top for i in large)",
            "if True",
        ),
        ("the last bias", "in reversed(of_top.items())", "in of_top.items()"),
        (
            "biases of any size",
            "return self.layer_axes if is_bias else None",
            "return self.layer_axes",
        ),
        ("one output axis", "range(2, len(x.others))", "range(2, 2)"),
        (
            "all axes are outputs",
            "if found and len(outputs) < len(x.others):",
            "if found:",
        ),
        (
            "layers must be told",
            "if kernel.layer_axes and not self.layer_axes:",
            "if False:",
        ),
        ("the last rule", "in reversed(rules):", "in rules:"),
        (
            "layers are outputs",
            "if set(of_layers) & set(of_outputs or ()):",
            "if False:",
        ),
        ("no rectifier", "math.sqrt(2.0 * outputs", "math.sqrt(1.0 * outputs"),
        (
            "norm of the inputs",
            "kernel.shape[axis] for axis in output_axes)",
            "n for i, n in enumerate(kernel.shape) if i not in output_axes)",
        ),
        ("no rest", "return constant, matrix - constant", "return constant, matrix"),
        ("two classes can tell", ".sum() > 2", ".sum() > 1"),
        ("three classes cannot tell", ".sum() > 2", ".sum() > 3"),
        (
            "what is shut can tell",
            "(parts > jnp.finfo(parts.dtype).eps).sum()",
            "parts.size",
        ),
    ),
    "lars/initialization.py": (
        ("wide kernels not turned", "matrix.T if is_wide else matrix", "matrix"),
        ("one pass", "fori_loop(0, len(kernels), ", "fori_loop(0, 1, "),
        (
            "signs of the factor",
            "jnp.diagonal(r) < 0, -1, 1",
            "jnp.diagonal(r) < 0, 1, 1",
        ),
        ("not rescaled", "unit(x)[0] * preserving_norm(x)", "x"),
    ),
    "lars/polar_optimizer.py": (
        ("no part of the depth", "** -o.depth_exponent", "** 0"),
        (
            "no derivative of no norm",
            "root(at.sum(_inner(rest, rest)))",
            "jnp.sqrt(at.sum(_inner(rest, rest)))",
        ),
        (
            "no average",
            "new_v = o.momentum * v + (1 - o.momentum) * direction",
            "new_v = direction",
        ),
        ("biases not averaged", "new_v = o.momentum * v + step", "new_v = step"),
        (
            "steps of one length",
            "root(1 - o.yielding * sigma**2) * size",
            "root(1 - o.yielding * sigma**2)",
        ),
        ("directions do not wait", "rate * root(1 - o.yielding * sigma**2)", "rate"),
        ("root without a square", "o.yielding * sigma**2", "o.yielding * sigma"),
        (
            "small kernels wait",
            "(s > 0) & (size > preserving_norm(layers.whole, outputs))",
            "s > 0",
        ),
        ("what grows waits", "(s > 0) & (size", "(size"),
        ("noise is a direction", "o = length / jnp", "o = 1.0 / jnp"),
        ("up the slope", "(o.radial_rate * s + decay)", "(-o.radial_rate * s + decay)"),
        ("signs not averaged", "sums = o.radial_momentum * sums + ", "sums = "),
        (
            "an average that begins with zero",
            "sums[..., 0] / sums[..., 1]",
            "(1 - o.radial_momentum) * sums[..., 0]",
        ),
        (
            "infinite derivatives",
            "rate * root(1 - o.yielding",
            "rate * jnp.sqrt(1 - o.yielding",
        ),
        ("no radial step", "(o.radial_rate * s + decay)", "decay"),
        ("no decay", "(o.radial_rate * s + decay)", "(o.radial_rate * s)"),
        ("decay of first order", "decay = gamma * beta", "decay = beta"),
        (
            "biases keep their size",
            "growth = spread(body.growth, vector.axes, w.shape)",
            "growth = 0.0",
        ),
        ("kernels turn around", "growth = jnp.expm1(", "growth = ("),
        ("zero stays", "jnp.where(size > 0, size, math.sqrt(outputs))", "size"),
        ("not across", "o - at.sum(_inner(o, u)) * u", "o"),
        ("not orthogonal", "orthogonalize(matrix, steps, matrix.dtype)", "matrix"),
        ("in float32", "steps, matrix.dtype)", "steps)"),
        (
            "gradients are averaged",
            "(direction, gradient_norm) = _unit(w, at), _unit(g, at)",
            "(direction, gradient_norm) = _unit(w, at), (g, _unit(g, at)[1])",
        ),
        (
            "a constant input drowns",
            "jnp.where(can_tell_constant_input(b), balanced, direction)",
            "direction",
        ),
        (
            "what is shut drowns",
            "jnp.where(can_tell_constant_input(b), balanced, direction)",
            "balanced",
        ),
        (
            "only the rest",
            "part = jnp.where(is_something",
            "part = 0 * jnp.where(is_something",
        ),
        ("rounding is something", "> _ROUNDING * jnp.finfo(rest.dtype).eps", "> 0"),
        (
            "free biases",
            "jnp.minimum(bound / math.sqrt(max(1, body.rows)), of_loss)",
            "bound",
        ),
        (
            "no share of the loss",
            "jnp.minimum(bound / math.sqrt(max(1, body.rows)), of_loss)",
            "bound / math.sqrt(max(1, body.rows))",
        ),
        (
            "no bound by the row",
            "jnp.minimum(bound / math.sqrt(max(1, body.rows)), of_loss)",
            "of_loss",
        ),
        (
            "norms of zero stay",
            "jnp.maximum(l2_norm(x), bound * math.sqrt(x.size))",
            "l2_norm(x)",
        ),
        ("norms of parts", "fraction = root(at.sum(of_part**2))", "fraction = of_part"),
        (
            "exponents of parts",
            "largest = jax.lax.pmax(exponent, names)",
            "largest = exponent",
        ),
        (
            "signs of parts",
            "jnp.sign(at.sum(_inner(direction, u)))",
            "jnp.sign(_inner(direction, u))",
        ),
        (
            "some outputs",
            "at.columns(unit_b, direction), at.sum_over_outputs",
            "at.columns(unit_b, direction)",
        ),
        ("factors of parts", "whole = at.axes.whole(v)", "whole = v"),
        (
            "inner products of parts",
            "o - at.sum(_inner(o, u)) * u",
            "o - _inner(o, u) * u",
        ),
        ("layers of one device", "layers.local(b.of_layers(), w)", "b.of_layers()"),
        ("shapes of parts", "roles_of(treedef.unflatten(wholes),", "roles_of(params,"),
        (
            "parts taken for the whole",
            "if partition_specs is None and names:",
            "if False:",
        ),
        ("shardings left to their types", "if shardings is not None:", "if False:"),
        (
            "complex parameters",
            "if not jnp.issubdtype(dtype, jnp.floating):",
            "if False:",
        ),
        (
            "momentum of another layer",
            "if averages != needed:",
            "if [*averages.values()] != [*needed.values()]:",
        ),
        ("known numbers traced", "np.asarray(number).item()", "number"),
        ("steps are injected", "steps: int | None = None", "steps: int | None = 3"),
    ),
    "lars/waking.py": (
        ("never patient", "silent_steps >= patience", "silent_steps >= 1"),
        (
            "what is shut can tell",
            "can_tell_constant_input(g[biases[i]]) if i in biases",
            "jnp.bool(True) if i in biases",
        ),
        ("for ever patient", "is_infinite | (silent_steps >= patience)", "is_infinite"),
        ("never gives up", "is_called & ~all_tried", "is_called"),
        (
            "zero is moved",
            "(x == 0).all() if jnp.ndim(x) >= 2",
            "jnp.bool(False) if jnp.ndim(x) >= 2",
        ),
        (
            "a closed scale is moved",
            "(jnp.abs(widen(x)) < SHUT).all()",
            "jnp.bool(False)",
        ),
        (
            "a scale is closed at zero alone",
            "(jnp.abs(widen(x)) < SHUT).all()",
            "(x == 0).all()",
        ),
        ("nothing is given back", "jnp.exp2(-state.moved),", "1.0,"),
        (
            "the rest alone is given back",
            "state.moved + jnp.log2(factors)",
            "jnp.log2(factors)",
        ),
        (
            "types of the parameters",
            "optax.tree.cast_like(_scaled(params, factors), like)",
            "_scaled(params, factors)",
        ),
        ("patient with NaN", "is_infinite | (silent", "(silent"),
        (
            "silence adds up",
            "state.silent_steps + 1, 0)",
            "state.silent_steps + 1, state.silent_steps)",
        ),
        ("never awake", "state.signal_steps >= AWAKE", "jnp.bool(False)"),
        (
            "NaN is slept through",
            "reasons.at[1:].set(reasons[1:] & ~is_awake)",
            "reasons & ~is_awake",
        ),
        (
            "once awake for ever",
            "is_silent, 0, jnp.minimum(state.signal_steps + 1, AWAKE)",
            "is_silent, state.signal_steps, jnp.minimum(state.signal_steps + 1, AWAKE)",
        ),
        ("the whole way at once", "1 / LARGEST_FACTOR, upper)", "0, jnp.inf)"),
        ("NaN grows", "jnp.where(is_infinite, 1.0, LARGEST_FACTOR)", "LARGEST_FACTOR"),
        ("the aim stands", "jnp.where(are_there, moved, level)", "level"),
        (
            "the aim moves unasked",
            "jnp.where(is_called, level, state.level)",
            "level + 1",
        ),
        ("no end of the aim", "-MOST_LEVELS, MOST_LEVELS + 1", "-99, 99"),
        ("the aim only rises", "jnp.where(is_infinite, -1, 1)", "1"),
        ("whole octaves", ".astype(relative.dtype) / 2)", ".astype(relative.dtype))"),
        ("momentum is kept", "fresh if is_of_params else old", "old"),
        ("the schedule starts again", "fresh if is_of_params else old", "fresh"),
        ("biases stay", "moves[i] = -w[i]", "moves[i] = 0 * w[i]"),
        ("nothing left to learn", " & ~is_zero.all()", ""),
        ("zero is a signal", "zero_kernels.any() & ~is_zero.all()", "jnp.bool(False)"),
        ("several reasons", "jnp.stack(found) & ~before", "jnp.stack(found)"),
        (
            "chaos is a signal",
            "effects.min() < effects.max() + math.log2(HEARD)",
            "effects.min() < effects.max() - 9999",
        ),
        (
            "tiny inputs are signals",
            "_log2_norm(bias) - _digits(kernel)",
            "_log2_norm(bias) - 9999",
        ),
        ("constant inputs are signals", "heard <= HEARD", "heard < 0"),
        (
            "one image is constant",
            "is_deaf.any() & hears.any()",
            "is_deaf.any()",
        ),
    ),
    "lars/figures/plane/starts.py": (
        ("finite whatever", "jnp.isfinite(report.loss) & ", ""),
        (
            "never silent",
            "gradient_norms[jnp.asarray(kernels)] != 0",
            "gradient_norms[jnp.asarray(kernels)] >= 0",
        ),
        ("rounding is a signal", "terms * 2.0**-24 * ", "0 * "),
    ),
    "lars/figures/plane/follow.py": (
        ("rank of the sum", "jnp.sum(gram * gram)", "jnp.sum(gram)"),
        ("the rank by its shape", "matrix = as_matrices(unit(x)[0])", "matrix = x"),
        (
            "observer meddles",
            "return new, ObservedState(",
            "return updates, ObservedState(",
        ),
        ("rank of the whole update", "across = step - along * u", "across = step"),
        ("rank of rounding", "> 64 * jnp.finfo(across.dtype).eps", "> 0"),
        ("moves not seen", "state.reasons.sum()", "0 * state.reasons.sum()"),
        (
            "cosine with the gradient",
            "for tree in (new, params))",
            "for tree in (new, updates))",
        ),
    ),
    "lars/figures/plane/mechanism.py": (
        (
            "momentum counts once",
            "across = 1 / (1 - settings",
            "across = 1 + 0 * (1 - settings",
        ),
        ("the whole rate a kernel", "learning_rate / kernels", "learning_rate"),
        (
            "sizes at the rate of directions",
            'learning_rate / kernels * settings["radial_rate"]',
            "learning_rate / kernels",
        ),
    ),
    "lars/schedules.py": (
        ("another power", "power=2", "power=3"),
        ("always restarted", "whole(count + warmup_steps)", "whole(count)"),
    ),
    "lars/models/convolution.py": (
        ("patches down and then across", "for axis in (2, 1)", "for axis in (1, 2)"),
        ("no stride", "i + last + 1, stride, axis", "i + last + 1, 1, axis"),
        (
            "groups swapped",
            "list(map(product, *groups))",
            "list(map(product, *groups))[::-1]",
        ),
        ("never a product", "cpu=as_product, default", "cpu=as_convolution, default"),
        ("always a product", "default=as_convolution", "default=as_product"),
        ("memory of one byte a number", " * images.dtype.itemsize", ""),
        ("dilations not refused", "if dilations != {1} or", "if"),
    ),
    "lars/single_run.py": (
        ("order of the epoch kept", "in_epoch == 0,", "number == 0,"),
        (
            "order of the first epoch",
            "epoch_order(run.seed, epoch, count)",
            "epoch_order(run.seed, 0 * epoch, count)",
        ),
        (
            "the same batch of each epoch",
            "in_epoch * batch_size, batch_size",
            "0 * in_epoch, batch_size",
        ),
        (
            "mean loss of the whole run",
            "begins = state.step % log_every == 0",
            "begins = state.step < 0",
        ),
        ("loss not looked at", "jnp.isfinite(report.loss), lambda", "True, lambda"),
        (
            "every loss must be finite",
            "lambda: _differ(following, state)",
            "lambda: False",
        ),
        ("goes on after divergence", "was_fine & all_finite(", "all_finite("),
        (
            "the last report is the first",
            "lambda x: x[-1], reports",
            "lambda x: x[0], reports",
        ),
    ),
    "lars/optimizers.py": (
        ("optimizers exchanged", '"lamb": optax.lamb', '"lamb": optax.adam'),
        ("defaults not described", "    bound.apply_defaults()\n", ""),
        (
            "all is said to be decayed",
            "= _kernels_and_their_biases\n",
            "= True\n",
        ),
    ),
}
# The preset, what is right in it, and what is wrong.
PRESET_VALUES = (
    ("paper", "= 5e-4", "= 1e-4"),
    ("paper", '"zero"', '"one"'),
    ("optax", '"decayed"', '"gradient"'),
    ("optax", '"one"', '"zero"'),
    ("optax", "weight_decay: ScalarOrSchedule = 0.0", "weight_decay: float = 1e-4"),
    ("simclr", "_BATCH_NORM, ", ""),
    ("simclr", '"bias", ', ""),
    ("simclr", ', "head_supervised"', ""),
    ("simclr", "~_named", "_named"),
    ("simclr_popular", "_BATCH_NORM, ", ""),
    ("simclr_popular", '"bias", ', ""),
    ("simclr_popular", ', "head_supervised"', ""),
    ("simclr_popular", 'denominator="update"', 'denominator="decayed"'),
    ("barlow_twins", "rank=1", "rank=(0, 1)"),
    ("barlow_twins", "required=False", "required=True"),
    ("barlow_twins", '"direction"', '"gradient"'),
    ("moco_v3", "rank=(0, 1)", "rank=1"),
    ("moco_v3", "required=False", "required=True"),
    ("timm", "clip=False", "clip=True"),
    ("timm_larc", "clip=True", "clip=False"),
    ("timm", "momentum: ArrayLike = 0.0", "momentum: ArrayLike = 0.9"),
    ("_timm", "rank=(0, 1)", "rank=1"),
    ("_timm", ' | _named("(^|/)bias$")', ""),
    ("_timm", "(^|/)bias$", "bias"),
    ("_timm", "and weight_decay == 0", "and False"),
    ("_timm", "eps=1e-8", "eps=1e-7"),
    ("apex_larc", "= 0.02", "= 0.001"),
    ("apex_larc", '"plain"', '"one"'),
    ("apex_larc", '"zero"', '"one"'),
    ("apex_larc", "eps=1e-8", "eps=1e-7"),
    ("torchlars", "eps=1e-8", "eps=1e-7"),
    ("mlperf_tf", "eps=1e-7", "eps=1e-8"),
    ("mlperf_tf", "= 1e-4", "= 0.0"),
    ("mlperf_tf", ', "bn"', ""),
    ("mlperf_tf", '"bias", ', ""),
    ("mlperf_tf", "_BATCH_NORM, ", ""),
    ("colossalai", "50.0", "49.0"),
    ("colossalai", "direction_bound=10.0", "direction_bound=11.0"),
    ("colossalai", '"gradient"', '"direction"'),
    ("oneflow", "ArrayLike = 1e-4", "ArrayLike = 1e-3"),
    ("oneflow", "eps=1e-9", "eps=1e-8"),
    ("oneflow", '"outside"', '"coupled"'),
    ("caffe", " * (1 - momentum)", ""),
    (
        "caffe",
        "        momentum=momentum,\n",
        "        momentum=momentum, dampening=momentum,\n",
    ),
    ("caffe", '"gradient"', '"sum"'),
)


def preset_mutants() -> Iterator[tuple[str, str, str]]:
    """Every option of every preset left out once, and the values above.

    Functions share their lines: what is replaced is the whole function.
    """
    source = (ROOT / "lars/presets.py").read_text()
    code = {}
    for match in re.finditer(r"^def (\w+)\(.*?(?=^def |^_BATCH)", source, re.M | re.S):
        function, text = match[1], match[0]
        if "return lars(" in text or function.startswith("timm"):
            code[function] = text
    for function, text in code.items():
        if "return lars(" not in text:
            continue
        call = text[text.index("return lars(") :]
        for option in re.findall(r"^        \w+=.*,\n", call, re.M):
            yield f"{function} without {option.strip()}", text, _cut(text, option, "")
        no_decay = _cut(text, "        weight_decay,\n", "        0.0,\n")
        yield f"{function} without weight decay", text, no_decay
    for function, right, wrong in PRESET_VALUES:
        text = code[function]
        yield (
            f"{function} with {wrong or 'no ' + right}",
            text,
            _cut(text, right, wrong),
        )
    for pattern in ("[Bb]atch_?[Nn]orm|", "|(^|/)bn"):
        yield f"batch normalization without {pattern}", pattern, ""
    yield "names required", '"|".join(patterns), required=False', '"|".join(patterns)'
    yield '"|".join', '"|".join', '"".join'


def _cut(text: str, right: str, wrong: str) -> str:
    """The function with its last such place changed, past the docstring or in none."""
    head = (
        text.index('"""')
        if text.count('"""') and right.startswith(("=", "ArrayL"))
        else None
    )
    if head:
        assert text[:head].count(right) == 1, right
        return text.replace(right, wrong, 1)
    start, found, end = text.rpartition(right)
    assert found, (right, text)
    return start + wrong + end


MUTANTS = [
    Mutant(name, file, right, wrong)
    for file, rows in {**TABLE, "lars/presets.py": tuple(preset_mutants())}.items()
    for name, right, wrong in rows
]


def first_failure(mutant: Mutant) -> str | None:
    """Runs the tests on the mutant; the first that fails, or None."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for folder in ("lars", "experiments", "configs", "docs", "tests"):
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
    """Prints which test notices each mutant; exits with 1 if one survives.

    ``python -m tests.mutants lars/norms.py lars/scaled.py``: those of some files.
    """
    chosen = [m for m in MUTANTS if m.file in (sys.argv[1:] or TESTS)]
    with ThreadPoolExecutor(2) as pool:
        failures: Iterator[str | None] = pool.map(first_failure, chosen)
        survivors = 0
        for mutant, failure in zip(tqdm(chosen, unit="mutant"), failures, strict=True):
            survivors += failure is None
            tqdm.write(f"{mutant.name:40} {failure or 'SURVIVED'}")
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants noticed.")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
