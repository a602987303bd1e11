"""What every network is to the rest of the code, and what they have in common."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

Variables = dict[str, Any]
ComputeDtype = Literal["float32", "bfloat16"]
"""Of activations and matrix products; parameters are float32."""


class Model(NamedTuple):
    """A network without its parameters."""

    init: Callable[[jax.Array, jax.Array], Variables]
    """From a PRNG key and images [B, H, W, C] to the variables: ``"params"``, and
    ``"batch_stats"`` if something follows from images and is not trained, as in batch
    normalization. All are float32."""

    apply: Callable[
        [Variables, jax.Array, jax.Array | None], tuple[jax.Array, Variables]
    ]
    """From variables, images [B, H, W, C] and a PRNG key to the logits [B, num_classes]
    (of a text, [B, T, num_classes]) in float32, and the variables with updated
    statistics. The key is what dropout draws from in training; None means evaluation,
    which draws and updates nothing."""

    outputs: Callable[[Variables, jax.Array, jax.Array | None], dict[str, jax.Array]]
    """From what `apply` takes to the output of every layer, by its path, in the order
    of the computation; of normalizations, in float32."""


def as_model(module: nn.Module) -> Model:
    """Wraps a module that is called with images and whether this is training."""

    def init(key: jax.Array, images: jax.Array) -> Variables:
        return dict(module.init(key, images, is_training=False))

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        if key is None:
            logits: Any = module.apply(variables, images, False)
            return logits.astype(jnp.float32), variables
        logits, updated = module.apply(
            variables, images, True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return logits.astype(jnp.float32), {**variables, **updated}

    def outputs(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> dict[str, jax.Array]:
        is_training = key is not None
        _, held = module.apply(
            variables,
            images,
            is_training,
            rngs={"dropout": key} if is_training else {},
            capture_intermediates=True,
            mutable=["intermediates", *(["batch_stats"] if is_training else [])],
        )
        named: Any = traverse_util.flatten_dict(dict(held["intermediates"]), sep="/")
        return {
            name.removesuffix("/__call__"): output
            for name, (output,) in named.items()
            if name != "__call__"
        }

    return Model(init, apply, outputs)


def batch_norm(
    x: jax.Array, is_training: bool, compute_dtype: str, **settings: Any
) -> jax.Array:
    """Batch normalization with running means of weight 0.9 on the past.

    Under `jax.jit` the batch is that of all devices together: the statistics are
    synchronised. They are computed in float32, and the result is rounded to
    `compute_dtype`.
    """
    norm = nn.BatchNorm(use_running_average=not is_training, momentum=0.9, **settings)
    # With a dtype of 16 bits flax mixes dtypes, which strict promotion refuses.
    return norm(x.astype(jnp.float32)).astype(jnp.dtype(compute_dtype))


def max_pool(images: jax.Array, window: int, stride: int, *, ceil: bool) -> jax.Array:
    """The maximum over square windows of images [B, H, W, C].

    With `ceil`, a last window that reaches over the edge counts, as in Caffe.
    """
    height, width = images.shape[1:3]
    if window == stride == 2 and not (ceil and (height % 2 or width % 2)):
        # On a CPU the gradient of this is almost twice as fast as that of the general
        # case. Of equal maxima, each gets its part of the gradient, and not the first
        # all of it. (A maximum over axes of a reshaped array is as fast, but with
        # jax_disable_most_optimizations, which the tests set, jax 0.10.2 compiles it
        # into a wrong gradient behind a batch normalization.)
        height, width = height // 2 * 2, width // 2 * 2  # a row left over has no pair
        rows = jnp.maximum(images[:, 0:height:2], images[:, 1:height:2])
        return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])
    padding: Any = [
        (0, max(0, -(-(size - window) // stride) * stride + window - size))
        if ceil
        else (0, 0)
        for size in (height, width)
    ]
    return nn.max_pool(images, (window, window), (stride, stride), padding)
