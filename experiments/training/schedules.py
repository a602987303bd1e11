"""Learning rates over the steps of a run: a linear warm-up, then a decay."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from experiments.checks import check_count, check_name

DECAYS: dict[str, Callable[[Any, int], optax.Schedule]] = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
    # The paper's "poly" policy of power 2: peak (1 - t/T)^2.
    "quadratic": lambda peak, steps: optax.polynomial_schedule(
        peak, 0.0, power=2, transition_steps=steps
    ),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
}


def learning_rate_schedule(
    peak: jax.Array | float,
    num_steps: int,
    *,
    decay: str,
    warmup_steps: int,
    warmup_start: float,
    restart_after_warmup: bool,
) -> optax.Schedule:
    r"""The learning rate :math:`\gamma_t` of each step.

    With a warm-up of :math:`W` of :math:`T` steps and the decay :math:`\phi`, from 1 at
    0 to 0 at 1,

    .. math::
        \gamma_t = \begin{cases}
          \gamma_s + (\gamma - \gamma_s)\, t / W & t < W \\
          \gamma\, \phi(t / T) & t \ge W, \text{ going on} \\
          \gamma\, \phi((t - W) / (T - W)) & t \ge W, \text{ restarted}
        \end{cases}

    Args:
        peak: :math:`\gamma`.
        num_steps: :math:`T`.
        decay: :math:`\phi`, one of `DECAYS`.
        warmup_steps: :math:`W`, 0 for none.
        warmup_start: :math:`\gamma_s`, the learning rate of the first step.
        restart_after_warmup: whether the decay begins when the warm-up ends. The
            paper's did not: its rate falls from :math:`\gamma` to
            :math:`\gamma (1 - W/T)^2` there (NVIDIA caffe, ``sgd_solver.cpp``); that of
            MLPerf does.

    Raises:
        ValueError: for an unknown decay, or a warm-up that does not fit into the steps.

    References:
        You et al., `Large Batch Training of Convolutional Networks
        <https://arxiv.org/abs/1708.03888>`_, 2017; Goyal et al., `Accurate, Large
        Minibatch SGD <https://arxiv.org/abs/1706.02677>`_, 2017, section 2.2
    """
    check_name("schedule.decay", decay, DECAYS)
    check_count("schedule.warmup_steps", warmup_steps, least=0)
    if warmup_steps >= num_steps:
        raise ValueError(
            "schedule.warmup_steps must be a whole number from 0 to below num_steps "
            f"({num_steps}), got {warmup_steps!r}."
        )
    if not warmup_start >= 0:
        raise ValueError(
            f"schedule.warmup_start must be at least 0, got {warmup_start!r}."
        )
    first = warmup_steps if restart_after_warmup else 0  # step of the decay
    decayed = DECAYS[decay](peak, num_steps - first)
    if not warmup_steps:
        return decayed
    warmup = optax.linear_schedule(warmup_start, peak, warmup_steps)
    return optax.join_schedules(
        [warmup, lambda since: decayed(since + (warmup_steps - first))], [warmup_steps]
    )


def corner_values(
    schedule: optax.Schedule, num_steps: int, warmup_steps: int
) -> dict[str, float]:
    """The learning rate where a reader looks: at both ends, and around the warm-up."""
    corners = {"first step": 0}
    if warmup_steps:
        corners["last of the warm-up"] = warmup_steps - 1
        corners["first after it"] = warmup_steps
    corners |= {"halfway": num_steps // 2, "last step": num_steps - 1}
    return {f"{name} ({step})": float(schedule(step)) for name, step in corners.items()}
