"""LARS in numpy and float64: the paper's Algorithm 1, and the codes that are named.

Each class is one layer, written from its source; nothing here comes from the
implementation under test. Class attributes are the source's defaults. Velocities that
sources hold with the sign of the update are negated.
"""

import numpy as np


def norm(x):
    """The root of the sum of squares, of all elements."""
    return np.sqrt(np.sum(x**2))


class Layer:
    """A layer's weights and velocity; subclasses have `step`, and their defaults."""

    eta, beta, momentum, eps = 0.001, 0.0, 0.9, 0.0

    def __init__(self, w, *, eta=None, beta=None, momentum=None, nesterov=False):
        """Starts with the velocity at zero."""
        self.w = np.array(w, np.float64)
        self.v = np.zeros_like(self.w)
        self.eta = self.eta if eta is None else eta
        self.beta = self.beta if beta is None else beta
        self.momentum = self.momentum if momentum is None else momentum
        self.nesterov = nesterov
        self.ratio = np.nan

    def step(self, g, gamma):
        """One step with gradient g and learning rate γ; returns the weights."""
        raise NotImplementedError

    def trust_ratio(self, g, divisor):
        """η‖w‖ over the divisor; 1 where ‖w‖ or ‖g‖ is zero."""
        w_norm = norm(self.w)
        is_adapted = w_norm > 0 and norm(g) > 0
        return self.eta * w_norm / divisor if is_adapted else 1.0

    def sum_of_norms(self, g):
        """‖g‖ + β‖w‖ + ε."""
        return norm(g) + self.beta * norm(self.w) + self.eps

    def decayed(self, g):
        """The sum g + β w."""
        return g + self.beta * self.w

    def sgd(self, d, rate=1.0):
        """v ← m v + d; w ← w - rate v, or what Nesterov has in the place of v."""
        self.v = self.momentum * self.v + d
        step = self.momentum * self.v + d if self.nesterov else self.v
        self.w = self.w - rate * step
        return self.w


class PaperLars(Layer):
    """λ = η‖w‖/(‖g‖ + β‖w‖); v ← m v + γ λ (g + β w); w ← w - v; 0/0 is 0."""

    beta = 5e-4

    def step(self, g, gamma):
        """Algorithm 1, with the η of equation 6."""
        divisor = self.sum_of_norms(g)
        self.ratio = self.eta * norm(self.w) / divisor if divisor > 0 else 0.0
        return self.sgd(gamma * self.ratio * self.decayed(g))


class SimClr(Layer):
    """LARSOptimizer, classic_momentum=True."""

    def step(self, g, gamma):
        """The ratio is that of the decayed gradient."""
        d = self.decayed(g)
        self.ratio = self.trust_ratio(d, norm(d))
        return self.sgd(gamma * self.ratio * d)


class Optax(SimClr):
    """A chain of add_decayed_weights, scale_by_trust_ratio, the rate and trace."""


class SimClrPopular(Layer):
    """LARSOptimizer, classic_momentum=False."""

    def step(self, g, gamma):
        """The ratio is that of the update, after the momentum."""
        d = self.decayed(g)
        self.v = self.momentum * self.v + d
        update = self.momentum * self.v + d if self.nesterov else self.v
        self.ratio = self.trust_ratio(update, norm(update))
        self.w = self.w - self.ratio * gamma * update
        return self.w


class BarlowTwins(Layer):
    """LARS of main.py."""

    def step(self, g, gamma):
        """The rate is outside the velocity, which is called mu."""
        d = self.decayed(g)
        self.ratio = self.trust_ratio(d, norm(d))
        return self.sgd(self.ratio * d, gamma)


class MocoV3(BarlowTwins):
    """The same lines."""


class Timm(Layer):
    """Lars, of groups that are decayed."""

    momentum = 0.0
    eps = 1e-8
    trust_clip = False

    def step(self, g, gamma):
        """SGD where there is no decay."""
        self.ratio = 1.0
        if self.beta != 0:
            self.ratio = self.trust_ratio(g, self.sum_of_norms(g))
            if self.trust_clip:
                self.ratio = min(self.ratio / gamma, 1.0)
            g = self.decayed(g) * self.ratio
        return self.sgd(g, gamma)


class TimmLarc(Timm):
    """Lars, trust_clip=True."""

    trust_clip = True


class ApexLarc(Layer):
    """LARC, clip=True, around SGD."""

    eta, momentum, eps = 0.02, 0.0, 1e-8

    def step(self, g, gamma):
        """A zero norm leaves the gradient alone: no decay either."""
        if norm(self.w) != 0 and norm(g) != 0:
            adaptive_lr = self.trust_ratio(g, self.sum_of_norms(g))
            self.ratio = min(adaptive_lr / gamma, 1)
            g = self.decayed(g) * self.ratio
        return self.sgd(g, gamma)


class TorchLars(Layer):
    """LARS around SGD."""

    momentum, eps = 0.0, 1e-8

    def step(self, g, gamma):
        """A zero norm has ratio one, and is decayed."""
        self.ratio = self.trust_ratio(g, self.sum_of_norms(g))
        return self.sgd(self.decayed(g) * self.ratio, gamma)


class MlperfTf(Layer):
    """LARSOptimizer in TensorFlow 2."""

    beta = 1e-4
    eps = 1e-7  # 0.0 or keras.backend.epsilon()

    def step(self, g, gamma):
        """The paper's, with ratio one at a zero norm."""
        self.ratio = self.trust_ratio(g, self.sum_of_norms(g))
        return self.sgd(gamma * self.ratio * self.decayed(g))


class ColossalAi(Layer):
    """Lars, with its two clamps."""

    momentum = 0.0

    def step(self, g, gamma):
        """The ratio is outside the momentum, the clamp of elements inside."""
        self.ratio = np.clip(self.trust_ratio(g, self.sum_of_norms(g)), 0.0, 50.0)
        d = np.clip(self.decayed(g), -10.0, 10.0)
        return self.sgd(d, gamma * self.ratio)


class OneFlow(Layer):
    """LarsUpdateFunctor."""

    eta = 1e-4
    eps = 1e-9

    def step(self, g, gamma):
        """The decay does not enter the momentum."""
        self.ratio = self.trust_ratio(g, self.sum_of_norms(g))
        local_rate = gamma * self.ratio
        decay = local_rate * self.beta * self.w
        self.w = self.sgd(local_rate * g) - decay
        return self.w


class Caffe(Layer):
    """SGDSolver on a GPU: GetLocalRate, ComputeUpdateValue, SGDRegUpdateAllAndClear."""

    momentum = 0.0

    def step(self, g, gamma):
        """larc_policy "scale", regularization_type "L2"."""
        self.ratio = self.trust_ratio(g, norm(g) / (1 - self.momentum))
        return self.sgd(gamma * self.ratio * self.decayed(g))
