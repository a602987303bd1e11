"""LARS in numpy and float64, written from the paper's Algorithm 1 and equation 6.

Nothing here comes from the implementation under test.
"""

import numpy as np


class PaperLars:
    """One layer: λ = η‖w‖/(‖g‖ + β‖w‖); v ← m v + γ λ (g + β w); w ← w - v."""

    def __init__(self, w, *, eta, beta, momentum, nesterov=False):
        """Starts with the velocity at zero."""
        self.w = np.array(w, np.float64)
        self.v = np.zeros_like(self.w)
        self.eta, self.beta, self.momentum = eta, beta, momentum
        self.nesterov = nesterov
        self.ratio = np.nan

    def step(self, g, gamma):
        """One step with gradient g and learning rate γ."""
        w_norm = np.sqrt(np.sum(self.w**2))
        g_norm = np.sqrt(np.sum(g**2))
        self.ratio = self.eta * w_norm / (g_norm + self.beta * w_norm)
        scaled = gamma * self.ratio * (g + self.beta * self.w)
        self.v = self.momentum * self.v + scaled
        self.w = self.w - (self.momentum * self.v + scaled if self.nesterov else self.v)
        return self.w
