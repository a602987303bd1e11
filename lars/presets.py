r"""The LARS of the paper and thirteen published rules, with the choices of each source.

Optimizers of different rules share one name. With weights w, gradient g, learning rate
γ, trust coefficient η, weight decay β, momentum m, trust ratio λ, and d = g + βw:

===== =================================== ============= ===============================
      velocity and step                   λ is η‖w‖ by  presets
===== =================================== ============= ===============================
A     v ← m v + γλd;  w ← w - v           ‖g‖ + β‖w‖    `paper`, `mlperf_tf`
A′    as A                                ‖g + βw‖      `optax`, `simclr`
B     v ← m v + λd;  w ← w - γv           ‖g‖ + β‖w‖    `timm`, `timm_larc`,
                                                        `apex_larc`, `torchlars`
B′    as B                                ‖g + βw‖      `barlow_twins`, `moco_v3`
C     v ← m v + d;  w ← w - γλv           ‖v‖           `simclr_popular`
D     as C                                ‖g‖ + β‖w‖    `colossalai`
E     v ← m v + γλg;  w ← w - v - γλβw    ‖g‖ + β‖w‖    `oneflow`
F     as A, with (1 - m)λ for λ           ‖g‖           `caffe`
===== =================================== ============= ===============================

At a constant learning rate A is B and A′ is B′; without decay A is A′, and B is B′.

Every preset takes ``learning_rate`` (a number or a schedule), ``weight_decay``,
``trust_coefficient``, ``momentum`` and ``nesterov``, with the defaults of its source,
and ``partition_specs``, as :func:`lars.lars` has it. It returns an optimizer of
:func:`lars.lars`, so that :func:`lars.trust_ratios` and the rest work on its state.

Unless a docstring says more, Nesterov's step is that of the source, no parameter is
excluded, and no ratio is bounded or clipped. An excluded parameter has λ = 1 and β = 0.
A layer whose norm is not finite skips its step, which no source does.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

from jax.typing import ArrayLike
from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from lars.optimizer import lars
from lars.options import check_below_one, check_number
from lars.rules import Mask, Selection, select

P = ParamSpec("P")
Preset = Callable[P, GradientTransformationExtraArgs]


class Variant(NamedTuple):
    """A preset, and where its rule is from."""

    function: Callable[..., GradientTransformationExtraArgs]
    family: str  # its letter in the table of this module
    equation: str  # the first line of the function's docstring
    source: str  # a project and its version
    url: str  # of the code, or of the paper


VARIANTS: dict[str, Variant] = {}
"""The presets by name, in the order of the families."""


def _published(
    family: str, source: str
) -> Callable[[Callable[P, dict[str, Any]]], Preset[P]]:
    """Makes a preset of a function that returns the options of `lars` for a source.

    The preset calls `lars` with its own arguments and with these options, which come
    first. `VARIANTS` has it, with the equation and the URL of its docstring.
    """

    def enter(choose: Callable[P, dict[str, Any]]) -> Preset[P]:
        choose.__annotations__["return"] = GradientTransformationExtraArgs
        signature = inspect.signature(choose)

        @functools.wraps(choose)
        def preset(
            *args: P.args, **kwargs: P.kwargs
        ) -> GradientTransformationExtraArgs:
            options = choose(*args, **kwargs)
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return lars(**{**given.arguments, **options})

        equation, *rest = (choose.__doc__ or ".").split("\n")
        url = re.search("<(https[^>]*)>", "\n".join(rest))
        VARIANTS[choose.__name__] = Variant(
            preset, family, equation[:-1], source, url.group(1) if url else ""
        )
        return preset

    return enter


def _only(mask: Mask) -> dict[str, Any]:
    """Options under which only what the mask selects is adapted and decayed."""
    return {"trust_ratio_mask": mask, "weight_decay_mask": mask}


def _named(*patterns: str) -> Selection:
    return select(path="|".join(patterns), required=False)


_BATCH_NORM = "[Bb]atch_?[Nn]orm|(^|/)bn"
_SIMCLR = _only(~_named(_BATCH_NORM, "bias", "head_supervised"))


@_published("A", "You et al. 2017")
def paper(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 5e-4,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = η‖w‖/(‖g‖ + β‖w‖);  v ← m v + γλ(g + βw);  w ← w - v.

    Source: You, Gitman and Ginsburg, `Large Batch Training of Convolutional Networks
    <https://arxiv.org/abs/1708.03888v3>`_, 2017. Algorithm 1 prints λ without η;
    equation 6 has it. β is that of AlexNet there; ResNet-50 has 1e-4.
    Zero norms: the paper has no rule, so the equation stands. Zero weights stay zero, a
    zero gradient has λ = η/β, and 0/0 counts as 0.
    Nesterov: the textbook's form; the source has none.
    """
    return {"denominator": "sum", "momentum_of": "step", "zero_norm": "zero"}


@_published("A", "MLPerf training, TensorFlow 2")
def mlperf_tf(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 1e-4,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = η‖w‖/(‖g‖ + β‖w‖ + 1e-7);  v ← m v + γλ(g + βw);  w ← w - v.

    Source: ``LARSOptimizer`` of MLPerf's reference in TensorFlow 2, `lars_optimizer.py <https://github.com/mlcommons/training/blob/615ad0a2e4e3ee6827509f12f9659f6a0050ee13/image_classification/tensorflow2/lars_optimizer.py>`_.
    Keras replaces its ε, 0.0, by 1e-7. Its run has β = 2e-4.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0.
    Excluded, as in its run: biases, and batch normalization (Flax's names, and bn).
    """
    return {
        "denominator": "sum",
        "eps": 1e-7,
        "momentum_of": "step",
        "zero_norm": "one",
        "zero_gradient": "one",
        **_only(~_named(_BATCH_NORM, "bias", "bn")),
    }


@_published("A′", "optax 0.2.8")
def optax(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = η‖w‖/‖g + βw‖;  v ← m v + γλ(g + βw);  w ← w - v.

    Source: ``optax.lars`` 0.2.8, `optax/_src/alias.py <https://github.com/google-deepmind/optax/blob/v0.2.8/optax/_src/alias.py>`_.
    Zero norms: λ = 1 where ‖w‖ or ‖g + βw‖ is 0.
    """
    return {"denominator": "decayed", "momentum_of": "step", "zero_norm": "one"}


@_published("A′", "SimCLR")
def simclr(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = η‖w‖/‖g + βw‖;  v ← m v + γλ(g + βw);  w ← w - v.

    Source: ``LARSOptimizer`` of SimCLR with ``classic_momentum=True``, its default,
    `lars_optimizer.py <https://github.com/google-research/simclr/blob/383d4143fd8cf7879ae10f1046a9baeb753ff438/lars_optimizer.py>`_.
    SimCLR's runs have β = 1e-4.
    Zero norms: λ = 1 where ‖w‖ or ‖g + βw‖ is 0.
    Excluded, as in SimCLR's call: biases, head_supervised, and batch normalization (by
    Flax's names, or names that begin with bn).
    """
    return {
        "denominator": "decayed",
        "momentum_of": "step",
        "zero_norm": "one",
        **_SIMCLR,
    }


@_published("B", "timm 1.0.31")
def timm(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = η‖w‖/(‖g‖ + β‖w‖ + 1e-8);  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``Lars`` of timm 1.0.31, `timm/optim/lars.py <https://github.com/huggingface/pytorch-image-models/blob/v1.0.31/timm/optim/lars.py>`_.
    Its factory, ``create_optimizer_v2``, has m = 0.9.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0.
    Excluded: arrays of ranks 0 and 1, and biases of any rank. The factory sets their β
    to 0, and the class does not adapt what has β = 0. With the number 0 for
    ``weight_decay``, the default, everything is excluded, and this is SGD. (A schedule
    or an array that is zero does not do that.)
    """
    return _timm(weight_decay, clip=False)


@_published("B", "timm 1.0.31, trust_clip")
def timm_larc(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = min(η‖w‖/(‖g‖ + β‖w‖ + 1e-8)/γ, 1);  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``Lars`` of timm 1.0.31 with ``trust_clip=True``, ``larc`` of its factory,
    `timm/optim/lars.py <https://github.com/huggingface/pytorch-image-models/blob/v1.0.31/timm/optim/lars.py>`_.
    Zero norms: 1 where ‖w‖ or ‖g‖ is 0, and then clipped: λ = min(1/γ, 1).
    Excluded: as in `timm`, everything at ``weight_decay=0``; never clipped.
    """
    return _timm(weight_decay, clip=True)


def _timm(weight_decay: ScalarOrSchedule, *, clip: bool) -> dict[str, Any]:
    mask = ~(select(rank=(0, 1), required=False) | _named("(^|/)bias$"))
    is_sgd = isinstance(weight_decay, (int, float)) and weight_decay == 0
    return {
        "denominator": "sum",
        "eps": 1e-8,
        "weight_decay_kind": "coupled",
        "momentum_of": "direction",
        "clip": clip,
        "zero_norm": "one",
        "zero_gradient": "one",
        **_only(False if is_sgd else mask),
    }


@_published("B", "NVIDIA apex 25.05, LARC")
def apex_larc(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.02,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = min(η‖w‖/(‖g‖ + β‖w‖ + 1e-8)/γ, 1);  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``LARC`` of NVIDIA apex 25.05, `apex/parallel/LARC.py <https://github.com/NVIDIA/apex/blob/e13873debc4699d39c6861074b9a3b2a02327f92/apex/parallel/LARC.py>`_,
    before its removal, with its default ``clip=True``, around ``torch.optim.SGD``.
    Zero norms: where ‖w‖ or ‖g‖ is 0, v ← m v + g, without ratio, clipping and decay.
    """
    return {
        "denominator": "sum",
        "eps": 1e-8,
        "momentum_of": "direction",
        "clip": True,
        "zero_norm": "plain",
        "zero_gradient": "zero",
    }


@_published("B", "torchlars 0.1.2")
def torchlars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = η‖w‖/(‖g‖ + β‖w‖ + 1e-8);  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``LARS`` of torchlars 0.1.2 around ``torch.optim.SGD``, `torchlars/lars.py <https://github.com/kakaobrain/torchlars/blob/v0.1.2/torchlars/lars.py>`_.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0.
    """
    return {
        "denominator": "sum",
        "eps": 1e-8,
        "momentum_of": "direction",
        "zero_norm": "one",
        "zero_gradient": "one",
    }


@_published("B′", "Barlow Twins")
def barlow_twins(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = η‖w‖/‖g + βw‖;  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``LARS`` of Barlow Twins with the two filters that its script turns on,
    `main.py <https://github.com/facebookresearch/barlowtwins/blob/8e8d284ca0bc02f88b92328e53f9b901e86b4a3c/main.py>`_.
    Its script has β = 1e-6.
    Zero norms: λ = 1 where ‖w‖ or ‖g + βw‖ is 0.
    Excluded: arrays of rank 1, not scalars; the script gives them a rate of their own.
    Nesterov: the textbook's form; the source has none.
    """
    return {
        "denominator": "decayed",
        "momentum_of": "direction",
        "zero_norm": "one",
        **_only(~select(rank=1, required=False)),
    }


@_published("B′", "MoCo v3")
def moco_v3(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = η‖w‖/‖g + βw‖;  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``LARS`` of MoCo v3, `moco/optimizer.py <https://github.com/facebookresearch/moco-v3/blob/c349e6e24f40d3fedb22d973f92defa4cedf37a7/moco/optimizer.py>`_.
    Its script has β = 1e-6.
    Zero norms: λ = 1 where ‖w‖ or ‖g + βw‖ is 0.
    Excluded: arrays of ranks 0 and 1.
    Nesterov: the textbook's form; the source has none.
    """
    return {
        "denominator": "decayed",
        "momentum_of": "direction",
        "zero_norm": "one",
        **_only(~select(rank=(0, 1), required=False)),
    }


@_published("C", "SimCLR, popular momentum")
def simclr_popular(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """v ← m v + g + βw;  λ = η‖w‖/‖v‖;  w ← w - γλv.

    Source: ``LARSOptimizer`` of SimCLR with ``classic_momentum=False``,
    `lars_optimizer.py <https://github.com/google-research/simclr/blob/383d4143fd8cf7879ae10f1046a9baeb753ff438/lars_optimizer.py>`_.
    With Nesterov's step, u = m v + g + βw takes the place of v, in λ too.
    Zero norms: λ = 1 where ‖w‖ or ‖v‖ is 0.
    Excluded: as in `simclr`.
    """
    return {
        "denominator": "update",
        "momentum_of": "gradient",
        "zero_norm": "one",
        **_SIMCLR,
    }


@_published("D", "ColossalAI 0.5.0")
def colossalai(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = min(η‖w‖/(‖g‖ + β‖w‖), 50);  v ← m v + g + βw;  w ← w - γλv.

    Source: ``Lars`` of ColossalAI 0.5.0, `colossalai/nn/optimizer/lars.py <https://github.com/hpcaitech/ColossalAI/blob/v0.5.0/colossalai/nn/optimizer/lars.py>`_.
    Elements of g + βw are bounded by ±10 on their way into v; λ has g as it is.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0, for all of v.
    Nesterov: the textbook's form; the source has none.
    """
    return {
        "denominator": "sum",
        "momentum_of": "gradient",
        "trust_ratio_bounds": (0.0, 50.0),
        "direction_bound": 10.0,
        "zero_norm": "one",
        "zero_gradient": "one",
    }


@_published("E", "OneFlow 1.0.0")
def oneflow(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 1e-4,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = η‖w‖/(‖g‖ + β‖w‖ + 1e-9);  v ← m v + γλg;  w ← w - v - γλβw.

    Source: OneFlow 1.0.0, its kernel, `oneflow/user/kernels/model_update_kernel_util.h <https://github.com/Oneflow-Inc/oneflow/blob/v1.0.0/oneflow/user/kernels/model_update_kernel_util.h>`_,
    and the defaults of its job configuration.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0, in the decay too.
    Nesterov: the textbook's form; the source has none.
    """
    return {
        "denominator": "sum",
        "eps": 1e-9,
        "weight_decay_kind": "outside",
        "momentum_of": "step",
        "zero_norm": "one",
        "zero_gradient": "one",
    }


@_published("F", "NVIDIA caffe 0.17.4")
def caffe(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> dict[str, Any]:
    """λ = (1 - m)η‖w‖/‖g‖;  v ← m v + γλ(g + βw);  w ← w - v.

    Source: ``SGDSolver`` of NVIDIA's caffe, v0.17.1 to v0.17.4,
    `src/caffe/solvers/sgd_solver.cpp <https://github.com/NVIDIA/caffe/blob/v0.17.4/src/caffe/solvers/sgd_solver.cpp>`_,
    on a GPU, with its defaults ``larc_policy`` "scale" and ``regularization_type``
    "L2". (v0.17.0 has no 1 - m; on a CPU the gradient is decayed before its norm is
    taken; type "WD" decays outside the momentum.) Unless they are set, m and β are 0.
    Zero norms: λ = 1, without 1 - m, where ‖w‖ or ‖g‖ is 0.
    Nesterov: the textbook's form; ``NesterovSolver`` does not adapt.
    """
    check_number("trust_coefficient", trust_coefficient)
    check_number("momentum", momentum)
    check_below_one("momentum", momentum)
    return {
        "trust_coefficient": trust_coefficient * (1 - momentum),
        "denominator": "gradient",
        "momentum_of": "step",
        "zero_norm": "one",
    }
