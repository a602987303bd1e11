r"""The LARS of the paper and of thirteen codes, each with its source's own choices.

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

Every preset takes the learning rate (a number or a schedule), and ``weight_decay``,
``trust_coefficient``, ``momentum`` and ``nesterov``, whose defaults are the source's,
and ``partition_specs``, as :func:`lars.lars` has it. It returns what :func:`lars.lars`
returns, so that :func:`lars.trust_ratios` and the rest work on it. A docstring that
says nothing else means: Nesterov's step as the source has it, no parameter excluded,
and neither bounds nor clipping. What is excluded has λ = 1 and β = 0. A layer with a
norm that is not finite skips its step in all of them, which no source does.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from jax.typing import ArrayLike
from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from lars.optimizer import lars
from lars.options import check_below_one, check_number
from lars.rules import Selection, select

Preset = TypeVar("Preset", bound=Callable[..., GradientTransformationExtraArgs])


class Variant(NamedTuple):
    """A preset, and where its rule is from."""

    function: Callable[..., GradientTransformationExtraArgs]
    family: str
    """The letter in the table of this module."""
    equation: str
    """As the function's docstring begins."""
    source: str
    """Its project and version."""
    url: str
    """Of the code, or of the paper."""


VARIANTS: dict[str, Variant] = {}
"""The presets by name, in the order of the families."""

_BATCH_NORM = "[Bb]atch_?[Nn]orm|(^|/)bn"


def _named(*patterns: str) -> Selection:
    return select(path="|".join(patterns), required=False)


def _published(family: str, source: str) -> Callable[[Preset], Preset]:
    """Enters a preset into `VARIANTS`; its docstring has the equation and the URL."""

    def enter(function: Preset) -> Preset:
        equation, *rest = (function.__doc__ or ".").split("\n")
        url = re.search("<(https[^>]*)>", "\n".join(rest))
        VARIANTS[function.__name__] = Variant(
            function, family, equation[:-1], source, url.group(1) if url else ""
        )
        return function

    return enter


@_published("A", "You et al. 2017")
def paper(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 5e-4,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = η‖w‖/(‖g‖ + β‖w‖);  v ← m v + γλ(g + βw);  w ← w - v.

    Source: Algorithm 1, whose λ is printed without η; equation 6 has it. β is that of
    its AlexNet; its ResNet-50 has 1e-4.
    Zero norms: the paper has no rule. As the equation stands, zero weights stay zero
    for ever, and a zero gradient has λ = η/β. 0/0 is taken for 0.
    Nesterov: not in the source, the textbook's form.

    References:
        You, Gitman and Ginsburg, `Large Batch Training of Convolutional Networks
        <https://arxiv.org/abs/1708.03888v3>`_, 2017
    """
    return lars(
        learning_rate,
        weight_decay,
        trust_coefficient=trust_coefficient,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        zero_norm="zero",
    )


@_published("A′", "optax 0.2.8")
def optax(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = η‖w‖/‖g + βw‖;  v ← m v + γλ(g + βw);  w ← w - v.

    Source: ``optax.lars`` 0.2.8.
    Zero norms: λ = 1 where ‖w‖ or ‖g + βw‖ is 0.

    References:
        `optax/_src/alias.py
        <https://github.com/google-deepmind/optax/blob/v0.2.8/optax/_src/alias.py>`_
    """
    return lars(
        learning_rate,
        weight_decay,
        trust_coefficient=trust_coefficient,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        denominator="decayed",
        zero_norm="one",
    )


@_published("A′", "SimCLR")
def simclr(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = η‖w‖/‖g + βw‖;  v ← m v + γλ(g + βw);  w ← w - v.

    Source: ``LARSOptimizer`` of SimCLR with ``classic_momentum=True``, its default. The
    runs of SimCLR have β = 1e-4.
    Zero norms: λ = 1 where ‖w‖ or ‖g + βw‖ is 0.
    Excluded, as in SimCLR's call: batch normalization (by the names that Flax gives it,
    or names that begin with bn), biases, and head_supervised.

    References:
        `lars_optimizer.py of google-research/simclr
        <https://github.com/google-research/simclr/blob/383d4143fd8cf7879ae10f1046a9baeb753ff438/lars_optimizer.py>`_
    """
    mask = ~_named(_BATCH_NORM, "bias", "head_supervised")
    return lars(
        learning_rate,
        weight_decay,
        weight_decay_mask=mask,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=mask,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        denominator="decayed",
        zero_norm="one",
    )


@_published("C", "SimCLR, popular momentum")
def simclr_popular(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """v ← m v + g + βw;  λ = η‖w‖/‖v‖;  w ← w - γλv.

    Source: ``LARSOptimizer`` of SimCLR with ``classic_momentum=False``. With Nesterov's
    step u = m v + g + βw, that takes the place of v in λ too.
    Zero norms: λ = 1 where ‖w‖ or ‖v‖ is 0.
    Excluded: as in `simclr`.

    References:
        `lars_optimizer.py of google-research/simclr
        <https://github.com/google-research/simclr/blob/383d4143fd8cf7879ae10f1046a9baeb753ff438/lars_optimizer.py>`_
    """
    mask = ~_named(_BATCH_NORM, "bias", "head_supervised")
    return lars(
        learning_rate,
        weight_decay,
        weight_decay_mask=mask,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=mask,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        denominator="update",
        momentum_of="gradient",
        zero_norm="one",
    )


@_published("B′", "Barlow Twins")
def barlow_twins(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = η‖w‖/‖g + βw‖;  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``LARS`` of Barlow Twins, with the two filters that its script turns on. The
    script has β = 1e-6, and gives what is excluded a rate of its own: 0.0048 for 0.2.
    Zero norms: λ = 1 where ‖w‖ or ‖g + βw‖ is 0.
    Excluded: arrays of rank 1. Scalars are not.
    Nesterov: not in the source, the textbook's form.

    References:
        `main.py of facebookresearch/barlowtwins
        <https://github.com/facebookresearch/barlowtwins/blob/8e8d284ca0bc02f88b92328e53f9b901e86b4a3c/main.py>`_
    """
    mask = ~select(rank=1, required=False)
    return lars(
        learning_rate,
        weight_decay,
        weight_decay_mask=mask,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=mask,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        denominator="decayed",
        momentum_of="direction",
        zero_norm="one",
    )


@_published("B′", "MoCo v3")
def moco_v3(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = η‖w‖/‖g + βw‖;  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``LARS`` of MoCo v3, whose script has β = 1e-6.
    Zero norms: λ = 1 where ‖w‖ or ‖g + βw‖ is 0.
    Excluded: arrays of ranks 0 and 1.
    Nesterov: not in the source, the textbook's form.

    References:
        `moco/optimizer.py of facebookresearch/moco-v3
        <https://github.com/facebookresearch/moco-v3/blob/c349e6e24f40d3fedb22d973f92defa4cedf37a7/moco/optimizer.py>`_
    """
    mask = ~select(rank=(0, 1), required=False)
    return lars(
        learning_rate,
        weight_decay,
        weight_decay_mask=mask,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=mask,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        denominator="decayed",
        momentum_of="direction",
        zero_norm="one",
    )


@_published("B", "timm 1.0.31")
def timm(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = η‖w‖/(‖g‖ + β‖w‖ + 1e-8);  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``Lars`` of timm 1.0.31. Its factory, ``create_optimizer_v2``, has m = 0.9.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0.
    Excluded: arrays of ranks 0 and 1, and biases of any rank: the factory gives them
    β = 0, and the class adapts nothing that has β = 0. With the number 0 for
    ``weight_decay``, the default, everything is excluded, and this is SGD. (A schedule
    or an array that is zero does not do that.)

    References:
        `timm/optim/lars.py
        <https://github.com/huggingface/pytorch-image-models/blob/v1.0.31/timm/optim/lars.py>`_
    """
    return _timm(
        learning_rate,
        weight_decay,
        trust_coefficient,
        momentum,
        nesterov,
        partition_specs,
        clip=False,
    )


@_published("B", "timm 1.0.31, trust_clip")
def timm_larc(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = min(η‖w‖/(‖g‖ + β‖w‖ + 1e-8)/γ, 1);  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``Lars`` of timm 1.0.31 with ``trust_clip=True``, ``larc`` of its factory.
    Zero norms: 1 where ‖w‖ or ‖g‖ is 0, and then clipped: λ = min(1/γ, 1).
    Excluded: as in `timm`, everything at ``weight_decay=0``; never clipped.

    References:
        `timm/optim/lars.py
        <https://github.com/huggingface/pytorch-image-models/blob/v1.0.31/timm/optim/lars.py>`_
    """
    return _timm(
        learning_rate,
        weight_decay,
        trust_coefficient,
        momentum,
        nesterov,
        partition_specs,
        clip=True,
    )


def _timm(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    trust_coefficient: ArrayLike,
    momentum: ArrayLike,
    nesterov: bool,
    partition_specs: Any,
    *,
    clip: bool,
) -> GradientTransformationExtraArgs:
    mask = ~(select(rank=(0, 1), required=False) | _named("(^|/)bias$"))
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        mask = False
    return lars(
        learning_rate,
        weight_decay,
        weight_decay_mask=mask,
        trust_coefficient=trust_coefficient,
        eps=1e-8,
        trust_ratio_mask=mask,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        momentum_of="direction",
        clip=clip,
        zero_norm="one",
        zero_gradient="one",
    )


@_published("B", "NVIDIA apex 25.05, LARC")
def apex_larc(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.02,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = min(η‖w‖/(‖g‖ + β‖w‖ + 1e-8)/γ, 1);  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``LARC`` of NVIDIA apex 25.05, before its removal, with its default
    ``clip=True``, around ``torch.optim.SGD``.
    Zero norms: where ‖w‖ or ‖g‖ is 0, v ← m v + g: neither adapted, nor clipped, nor
    decayed.

    References:
        `apex/parallel/LARC.py
        <https://github.com/NVIDIA/apex/blob/e13873debc4699d39c6861074b9a3b2a02327f92/apex/parallel/LARC.py>`_
    """
    return lars(
        learning_rate,
        weight_decay,
        trust_coefficient=trust_coefficient,
        eps=1e-8,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        momentum_of="direction",
        clip=True,
        zero_norm="plain",
        zero_gradient="zero",
    )


@_published("B", "torchlars 0.1.2")
def torchlars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = η‖w‖/(‖g‖ + β‖w‖ + 1e-8);  v ← m v + λ(g + βw);  w ← w - γv.

    Source: ``LARS`` of torchlars 0.1.2, around ``torch.optim.SGD``.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0.

    References:
        `torchlars/lars.py
        <https://github.com/kakaobrain/torchlars/blob/v0.1.2/torchlars/lars.py>`_
    """
    return lars(
        learning_rate,
        weight_decay,
        trust_coefficient=trust_coefficient,
        eps=1e-8,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        momentum_of="direction",
        zero_norm="one",
        zero_gradient="one",
    )


@_published("A", "MLPerf training, TensorFlow 2")
def mlperf_tf(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 1e-4,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = η‖w‖/(‖g‖ + β‖w‖ + 1e-7);  v ← m v + γλ(g + βw);  w ← w - v.

    Source: ``LARSOptimizer`` of the MLPerf reference in TensorFlow 2. Its ε, 0.0, is
    replaced by Keras's 1e-7; its run has β = 2e-4.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0.
    Excluded, as in its run: batch normalization (by the names that Flax gives it, or
    names with bn in them) and biases.

    References:
        `image_classification/tensorflow2/lars_optimizer.py of mlcommons/training
        <https://github.com/mlcommons/training/blob/615ad0a2e4e3ee6827509f12f9659f6a0050ee13/image_classification/tensorflow2/lars_optimizer.py>`_
    """
    mask = ~_named(_BATCH_NORM, "bias", "bn")
    return lars(
        learning_rate,
        weight_decay,
        weight_decay_mask=mask,
        trust_coefficient=trust_coefficient,
        eps=1e-7,
        trust_ratio_mask=mask,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        zero_norm="one",
        zero_gradient="one",
    )


@_published("D", "ColossalAI 0.5.0")
def colossalai(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = min(η‖w‖/(‖g‖ + β‖w‖), 50);  v ← m v + g + βw;  w ← w - γλv.

    Source: ``Lars`` of ColossalAI 0.5.0. Elements of g + βw are bounded by ±10 on their
    way into v; the ratio has the g that is not bounded.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0, for all of v.
    Nesterov: not in the source, the textbook's form.

    References:
        `colossalai/nn/optimizer/lars.py
        <https://github.com/hpcaitech/ColossalAI/blob/v0.5.0/colossalai/nn/optimizer/lars.py>`_
    """
    return lars(
        learning_rate,
        weight_decay,
        trust_coefficient=trust_coefficient,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        momentum_of="gradient",
        trust_ratio_bounds=(0.0, 50.0),
        direction_bound=10.0,
        zero_norm="one",
        zero_gradient="one",
    )


@_published("E", "OneFlow 1.0.0")
def oneflow(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 1e-4,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = η‖w‖/(‖g‖ + β‖w‖ + 1e-9);  v ← m v + γλg;  w ← w - v - γλβw.

    Source: OneFlow 1.0.0, its kernel, and the defaults of its job configuration.
    Zero norms: λ = 1 where ‖w‖ or ‖g‖ is 0, in the decay too.
    Nesterov: not in the source, the textbook's form.

    References:
        `oneflow/user/kernels/model_update_kernel_util.h
        <https://github.com/Oneflow-Inc/oneflow/blob/v1.0.0/oneflow/user/kernels/model_update_kernel_util.h>`_
    """
    return lars(
        learning_rate,
        weight_decay,
        trust_coefficient=trust_coefficient,
        eps=1e-9,
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        weight_decay_kind="outside",
        zero_norm="one",
        zero_gradient="one",
    )


@_published("F", "NVIDIA caffe 0.17.4")
def caffe(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: ArrayLike = 0.001,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    partition_specs: Any = None,
) -> GradientTransformationExtraArgs:
    """λ = (1 - m)η‖w‖/‖g‖;  v ← m v + γλ(g + βw);  w ← w - v.

    Source: ``SGDSolver`` of NVIDIA's caffe, v0.17.1 to v0.17.4, on a GPU, with
    ``larc_policy`` "scale" and ``regularization_type`` "L2", its defaults. (v0.17.0 has
    no 1 - m; on a CPU the gradient is decayed before its norm is taken; type "WD"
    decays outside the momentum.) m and β have no default there but the zero of a
    number that is not set.
    Zero norms: λ = 1, without 1 - m, where ‖w‖ or ‖g‖ is 0.
    Nesterov: ``NesterovSolver`` does not adapt; the textbook's form.

    References:
        `src/caffe/solvers/sgd_solver.cpp of NVIDIA/caffe
        <https://github.com/NVIDIA/caffe/blob/v0.17.4/src/caffe/solvers/sgd_solver.cpp>`_
    """
    for name, number in (
        ("trust_coefficient", trust_coefficient),
        ("momentum", momentum),
    ):
        check_number(name, number)
    check_below_one("momentum", momentum)
    return lars(
        learning_rate,
        weight_decay,
        trust_coefficient=trust_coefficient * (1 - momentum),
        momentum=momentum,
        nesterov=nesterov,
        partition_specs=partition_specs,
        denominator="gradient",
        zero_norm="one",
    )


# By family, and within one as above.
_by_family = sorted(VARIANTS.items(), key=lambda item: item[1].family)
VARIANTS = dict(_by_family)
