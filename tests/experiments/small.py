"""Small networks that many tests train or look at."""

from experiments.networks import cnn, mlp

PLAIN = {
    "depth": 3,
    "width": 16,
    "activation": "relu",
    "use_bias": True,
    "normalization": "none",
    "compute_dtype": "float32",
}


def small_mlp(**changes):
    return mlp(10, **{**PLAIN, **changes})


def small_cnn(**changes):
    return cnn(10, **{**PLAIN, "convolutions_per_pool": 2, "widening": 1, **changes})
