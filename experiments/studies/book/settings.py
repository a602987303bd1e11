"""Sizes of the items of the book's section."""

from typing import Any

from configs.optimizers import LINEAR

TRAINED_WITH_SGD: dict[str, Any] = {
    "width": 64,
    "momentum": 0.9,
    "schedule": LINEAR,
    "batch_size": 64,
    "seeds": 3,
}


def by_model(*values: float) -> dict[str, float]:
    """Settings of the models of exercise 2."""
    models = ("linear regression", "softmax regression", "one hidden layer")
    return dict(zip(models, values, strict=True))


SIZES: dict[str, dict[str, Any]] = {
    "book_sigmoid": {"x_max": 8.0, "points": 161, "max_layers": 10},
    "book_gradient_norms": {
        "initializations": ("sd 0.01", "sd 1", "Xavier", "He"),
        "depths": (2, 5, 10, 20, 30, 50),
        "shown_depth": 30,
        "width": 128,
        "images": 128,
        "seeds": 5,
    },
    "book_matrices": {
        "width": 4,
        "matrices": 101,  # the book's one, and its 100 more
        "every": 10,
        "levels": 101,
        "seeds": 2000,
        "overflow_seeds": 300,
        "widths": (2, 4, 8, 16, 32, 64, 128),
        "vector_seeds": 200,
    },
    "book_variance": {
        "shapes": ((256, 256), (256, 512), (512, 256), (64, 1024)),
        "gamma": 1.5,
        "vectors": 64,
        "seeds": 30,
    },
    "book_keep_variance": {
        "factors": (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0),
        "signal_depth": 280,
        "signal_width": 128,
        "signal_inputs": 32,
        "every": 10,
        "trained_factors": (0.25, 0.5, 1.0, 2.0, 4.0),
        "depths": (4, 8, 16),
        "learning_rates": (1e-4, 1e-3, 1e-2, 0.1, 1.0),
        "num_steps": 200,
        **TRAINED_WITH_SGD,
    },
    "book_he_or_xavier": {
        "depths": (2, 4, 8, 16, 32),
        "signal_width": 256,
        "signal_inputs": 64,
        "learning_rates": (3e-3, 1e-2, 3e-2, 0.1),
        "num_steps": 150,
        **TRAINED_WITH_SGD,
    },
    "book_underflow": {
        "scales": (0.1, 20.0),
        "range_depth": 50,
        "width": 128,
        "inputs": 64,
        "weights": 20000,
        "images": 100,
        "learning_rates": tuple(10.0**-k for k in range(9, -1, -1)),
        "wide": 512,
        "correlation_depth": 64,
        "deviations": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
        "x_max": 24.0,
        "points": 241,
        "seeds": 3,
    },
    "book_symmetry": {
        "seeds": 3,
        # A multiple of the blocks in which processors compute products (24 elements on
        # AVX2, 48 on AVX-512, 12 on NEON): elements of another block are added up in
        # another order, and equal units would differ by rounding, which then grows.
        "width": 48,
        "constants": (0.05, 0.2),
        "dropout_rate": 0.5,
        "batch_size": 128,
        "learning_rates": {"SGD": 0.05, "Adam": 1e-3, "LARS": 10.0},
        "momentum": 0.9,
        "num_steps": 400,
        "points": 20,
    },
    "book_dropout": {
        "seeds": 15,
        "units": 128,
        "constants": (0.01, 0.1),
        "dropout_rates": (0.0, 0.2, 0.5, 0.8),
        "batch_sizes": (1, 4, 16, 64, 256, 1077),
    },
    "book_exercise1": {
        "seeds": 3,
        "images": 256,
        "num_steps": 40,
        "learning_rates": {"SGD": 0.02, "Adam": 2e-3, "LARS": 5.0},
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "same": 1e-9,
        "other": 1e-3,
    },
    "book_exercise2": {
        "seeds": 3,
        "hidden": 16,
        "ridges": by_model(0.05, 0.05, 0.0),
        "learning_rates": by_model(0.3, 0.2, 0.3),
        "num_steps": by_model(2048, 2048, 512),
    },
    "book_exercise3": {
        "pairs": 250,
        "pair_size": 4,
        "slack": 1e-9,
        "size": 16,
        "seeds": 5,
        "depths": (1, 2, 3, 10, 30, 100, 300, 1000, 3000, 10000),
    },
    "book_sigmoid_or_relu": {
        "seeds": 3,
        "gate_inputs": (1.5, 2.0),
        "gate_deviation": 2.0,
        "gate_steps": 1000,
        "gate_shown": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000),
        "digits": (3, 8),
        "floor": 1e-6,
        "output_rates": (0.01, 0.03, 0.1),
        "output_steps": 500,
        "bins": 10,
        "depths": (2, 4, 8, 12),
        "width": 64,
        "hidden_rates": (1e-3, 3e-3, 1e-2),
        "num_steps": 400,
        "batch_size": 128,
    },
}
"""Of the items as the page shows them."""

QUICK: dict[str, dict[str, Any]] = {
    "book_sigmoid": {},
    "book_gradient_norms": {"depths": (2, 30, 50), "images": 16, "seeds": 2},
    "book_matrices": {
        "levels": 21,
        "seeds": 500,
        "overflow_seeds": 100,
        "widths": (2, 4, 8, 16, 32),
        "vector_seeds": 100,
    },
    "book_variance": {"vectors": 16, "seeds": 20},
    "book_keep_variance": {
        "factors": (0.25, 1.0, 4.0),
        "signal_depth": 140,
        "signal_inputs": 16,
        "depths": (3, 10),
        "width": 32,
        "learning_rates": (1e-2, 0.1),
        "num_steps": 100,
        "seeds": 1,
    },
    "book_he_or_xavier": {
        "depths": (2, 12),
        "width": 32,
        "learning_rates": (1e-2, 0.1),
        "num_steps": 80,
        "seeds": 1,
    },
    "book_underflow": {"width": 64, "weights": 5000, "seeds": 2},
    "book_symmetry": {"seeds": 2, "num_steps": 100, "points": 4},
    "book_dropout": {"seeds": 5, "batch_sizes": (1, 4, 16, 64)},
    "book_exercise1": {"seeds": 1, "images": 64, "num_steps": 10},
    "book_exercise2": {"seeds": 2, "num_steps": by_model(1024, 1024, 128)},
    "book_exercise3": {"pairs": 50, "seeds": 2, "depths": (1, 3, 10, 100, 1000)},
    "book_sigmoid_or_relu": {
        "seeds": 1,
        "output_rates": (0.03,),
        "depths": (2, 8),
        "hidden_rates": (1e-3, 3e-3),
        "num_steps": 200,
    },
}
"""The sizes that are smaller in the quick versions."""
