"""LARS in numpy and float64: the paper's Algorithm 1, and the codes that are named.

Each class is one layer, written from its source and in its source's terms; nothing here
comes from the implementation under test. Class attributes are the source's defaults.
"""

import numpy as np


def norm(x):
    """The root of the sum of squares, of all elements."""
    return np.sqrt(np.sum(x**2))


class Layer:
    """A layer's weights and velocity; subclasses have `step`, and their defaults."""

    eta, beta, momentum = 0.001, 0.0, 0.9

    def __init__(
        self, w, *, eta=None, beta=None, momentum=None, nesterov=False, excluded=False
    ):
        """Starts with the velocity at zero."""
        self.w = np.array(w, np.float64)
        self.v = np.zeros_like(self.w)
        self.eta = self.eta if eta is None else eta
        self.beta = self.beta if beta is None else beta
        self.momentum = self.momentum if momentum is None else momentum
        self.nesterov = nesterov
        self.excluded = excluded
        self.ratio = np.nan

    def step(self, g, gamma):
        """One step with gradient g and learning rate γ; returns the weights."""
        raise NotImplementedError


class PaperLars(Layer):
    """λ = η‖w‖/(‖g‖ + β‖w‖); v ← m v + γ λ (g + β w); w ← w - v; 0/0 is 0."""

    beta = 5e-4

    def step(self, g, gamma):
        """Algorithm 1, with the η of equation 6."""
        w_norm = norm(self.w)
        g_norm = norm(g)
        divisor = g_norm + self.beta * w_norm
        self.ratio = self.eta * w_norm / divisor if divisor > 0 else 0.0
        scaled = gamma * self.ratio * (g + self.beta * self.w)
        self.v = self.momentum * self.v + scaled
        self.w = self.w - (self.momentum * self.v + scaled if self.nesterov else self.v)
        return self.w


class Optax(Layer):
    """A chain of add_decayed_weights, scale_by_trust_ratio, the rate and trace."""

    def step(self, g, gamma):
        """The velocity has the sign of the update, which is added."""
        update = g + self.beta * self.w
        param_norm, update_norm = norm(self.w), norm(update)
        zero_norm = param_norm == 0 or update_norm == 0
        self.ratio = 1.0 if zero_norm else self.eta * param_norm / update_norm
        update = -gamma * (self.ratio * update)
        self.v = update + self.momentum * self.v
        self.w = self.w + (update + self.momentum * self.v if self.nesterov else self.v)
        return self.w


class SimClr(Layer):
    """LARSOptimizer, classic_momentum=True."""

    def step(self, grad, learning_rate):
        """Excluded layers are neither decayed nor adapted."""
        if not self.excluded:
            grad = grad + self.beta * self.w
        self.ratio = 1.0
        if not self.excluded:
            w_norm, g_norm = norm(self.w), norm(grad)
            if w_norm > 0 and g_norm > 0:
                self.ratio = self.eta * w_norm / g_norm
        scaled_lr = learning_rate * self.ratio
        self.v = self.momentum * self.v + scaled_lr * grad
        update = self.v
        if self.nesterov:
            update = self.momentum * self.v + scaled_lr * grad
        self.w = self.w - update
        return self.w


class SimClrPopular(Layer):
    """LARSOptimizer, classic_momentum=False."""

    def step(self, grad, learning_rate):
        """The ratio is that of the update, after the momentum."""
        if not self.excluded:
            grad = grad + self.beta * self.w
        self.v = self.momentum * self.v + grad
        update = self.momentum * self.v + grad if self.nesterov else self.v
        self.ratio = 1.0
        if not self.excluded:
            w_norm, v_norm = norm(self.w), norm(update)
            if w_norm > 0 and v_norm > 0:
                self.ratio = self.eta * w_norm / v_norm
        self.w = self.w - self.ratio * learning_rate * update
        return self.w


class BarlowTwins(Layer):
    """LARS of main.py, where both filters exclude p.ndim == 1."""

    def step(self, dp, lr):
        """The rate is outside the velocity, which is called mu."""
        self.ratio = 1.0
        if not self.excluded:
            dp = dp + self.beta * self.w
            param_norm, update_norm = norm(self.w), norm(dp)
            if param_norm > 0 and update_norm > 0:
                self.ratio = self.eta * param_norm / update_norm
            dp = dp * self.ratio
        self.v = self.momentum * self.v + dp
        self.w = self.w - lr * self.v
        return self.w


class MocoV3(BarlowTwins):
    """The same lines, under p.ndim > 1."""


class Timm(Layer):
    """Lars; excluded are groups of no decay, and those that its factory makes so."""

    momentum = 0.0
    eps = 1e-8
    trust_clip = False

    def step(self, grad, lr):
        """SGD where there is no decay."""
        self.ratio = 1.0
        if self.beta != 0 and not self.excluded:
            w_norm, g_norm = norm(self.w), norm(grad)
            if w_norm > 0 and g_norm > 0:
                divisor = g_norm + w_norm * self.beta + self.eps
                self.ratio = self.eta * w_norm / divisor
            if self.trust_clip:
                self.ratio = min(self.ratio / lr, 1.0)
            grad = (grad + self.beta * self.w) * self.ratio
        self.v = self.momentum * self.v + grad
        self.w = self.w - lr * (
            grad + self.momentum * self.v if self.nesterov else self.v
        )
        return self.w


class TimmLarc(Timm):
    """Lars, trust_clip=True."""

    trust_clip = True


class TorchSgd(Layer):
    """The inner optimizer of the next two, without a decay of its own."""

    momentum = 0.0
    eps = 1e-8

    def sgd(self, grad, lr):
        """torch.optim.SGD."""
        self.v = self.momentum * self.v + grad
        self.w = self.w - lr * (
            grad + self.momentum * self.v if self.nesterov else self.v
        )
        return self.w


class ApexLarc(TorchSgd):
    """LARC, clip=True, around SGD."""

    eta = 0.02

    def step(self, grad, lr):
        """A zero norm leaves the gradient alone: no decay either."""
        param_norm, grad_norm = norm(self.w), norm(grad)
        if param_norm != 0 and grad_norm != 0:
            divisor = grad_norm + param_norm * self.beta + self.eps
            adaptive_lr = self.eta * param_norm / divisor
            self.ratio = min(adaptive_lr / lr, 1)
            grad = (grad + self.beta * self.w) * self.ratio
        return self.sgd(grad, lr)


class TorchLars(TorchSgd):
    """LARS around SGD."""

    def step(self, grad, lr):
        """A zero norm has ratio one, and is decayed."""
        param_norm, grad_norm = norm(self.w), norm(grad)
        self.ratio = 1.0
        if param_norm > 0 and grad_norm > 0:
            divisor = grad_norm + self.beta * param_norm + self.eps
            self.ratio = param_norm / divisor * self.eta
        return self.sgd((grad + self.beta * self.w) * self.ratio, lr)


class MlperfTf(Layer):
    """LARSOptimizer in TensorFlow 2, whose velocity is negative."""

    beta = 1e-4
    epsilon = 1e-7  # 0.0 or keras.backend.epsilon()

    def step(self, grad, learning_rate):
        """Excluded layers are neither decayed nor adapted."""
        scaled_lr = learning_rate
        self.ratio = 1.0
        if not self.excluded:
            w_norm, g_norm = norm(self.w), norm(grad)
            if w_norm > 0 and g_norm > 0:
                divisor = g_norm + self.beta * w_norm + self.epsilon
                self.ratio = self.eta * w_norm / divisor
            scaled_lr = learning_rate * self.ratio
            grad = grad + self.beta * self.w
        mom = self.v * self.momentum - grad * scaled_lr
        self.v = mom
        if self.nesterov:
            self.w = self.w + mom * self.momentum - grad * scaled_lr
        else:
            self.w = self.w + mom
        return self.w


class ColossalAi(Layer):
    """Lars, with its two clamps."""

    momentum = 0.0

    def step(self, grad, lr):
        """The ratio is outside the momentum, the clamp of elements inside."""
        w_norm, g_norm = norm(self.w), norm(grad)
        self.ratio = 1.0
        if w_norm > 0 and g_norm > 0:
            self.ratio = self.eta * w_norm / (g_norm + self.beta * w_norm)
        self.ratio = np.clip(self.ratio, 0.0, 50.0)
        decayed_grad = np.clip(grad + self.beta * self.w, -10.0, 10.0)
        self.v = self.momentum * self.v + decayed_grad
        self.w = self.w - lr * self.ratio * self.v
        return self.w


class OneFlow(Layer):
    """LarsUpdateFunctor, whose velocity is negative."""

    eta = 1e-4
    epsilon = 1e-9

    def step(self, model_diff, learning_rate):
        """The decay does not enter the momentum."""
        model_norm, model_diff_norm = norm(self.w), norm(model_diff)
        self.ratio = 1.0
        if model_norm > 0 and model_diff_norm > 0:
            divisor = self.epsilon + model_diff_norm + self.beta * model_norm
            self.ratio = self.eta * model_norm / divisor
        local_lr = learning_rate * self.ratio
        self.v = self.v * self.momentum - local_lr * model_diff
        self.w = self.w + self.v - local_lr * self.beta * self.w
        return self.w


class Caffe(Layer):
    """SGDSolver on a GPU: GetLocalRate, ComputeUpdateValue, SGDRegUpdateAllAndClear."""

    momentum = 0.0

    def step(self, g, rate):
        """larc_policy "scale", regularization_type "L2"."""
        w_norm, wgrad_norm = norm(self.w), norm(g)
        self.ratio = 1.0
        if w_norm > 0 and wgrad_norm > 0:
            self.ratio = (1 - self.momentum) * self.eta * w_norm / wgrad_norm
        local_rate = rate * self.ratio
        self.v = self.momentum * self.v + local_rate * (g + self.w * self.beta)
        self.w = self.w - self.v
        return self.w
