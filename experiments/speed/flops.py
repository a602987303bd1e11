"""How much work a training step is."""

from typing import Any

import jax

from experiments.networks import Model, Variables


def training_flops(model: Model, variables: Variables, image: jax.Array) -> float:
    """The floating-point operations of a training step, for each image [H, W, C].

    Three times those of the forward pass, in which a multiplication and an addition
    count as two.
    """

    def logits(variables: Variables, image: jax.Array) -> jax.Array:
        return model.apply(variables, image[None], None)[0]

    # What XLA counts before it optimizes: the model as it is written, with convolutions
    # as such, whose zeros beyond the edges are no work: see
    # `experiments.networks.convolution`. Only the CPU's client counts, of shapes alone:
    # accelerators' clients do not (https://github.com/jax-ml/jax/issues/22713).
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (variables, image)
    )
    with jax.default_device(jax.devices("cpu")[0]):
        traced = jax.jit(logits).trace(*shapes)
        analysis: Any = traced.lower(lowering_platforms=("tpu",)).cost_analysis()
    return 3 * float(analysis["flops"])
