"""Mending the initialization, before the first step: what optimizers compete with.

Each takes scaled kernels and gives others; biases and all else stay as they are.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from experiments.checks import check_name
from experiments.networks.init_scales import kernel_positions
from experiments.networks.model import Model, Variables
from lars.kernels import kernels_of, preserving_norm
from lars.norms import l2_norm, unit
from lars.rules import flatten_with_path, path_string
from lars.spectral import as_matrices, from_matrices

Initialization = Literal["scaled", "rescaled", "lsuv", "metainit"]

Mend = Callable[[Model, Variables, jax.Array], Any]
"""From a model, its variables and images [B, H, W, C] to parameters."""


def rescaled(model: Model, variables: Variables, images: jax.Array) -> Any:
    """Every kernel times what gives it its `preserving_norm`."""
    del model, images
    leaves, treedef = jax.tree.flatten(variables["params"])
    for kernel in kernels_of(variables["params"]):
        x = leaves[kernel.leaf]
        norm = preserving_norm(x, kernel.output_axes)
        leaves[kernel.leaf] = unit(x)[0] * norm
    return treedef.unflatten(leaves)


def lsuv(model: Model, variables: Variables, images: jax.Array) -> Any:
    """Layer-sequential unit variance: orthogonal kernels, and outputs of deviation one.

    From the first layer to the last, a kernel is divided by the standard deviation of
    what the layer puts out for the images, without its bias. A kernel of zeros becomes
    the identity, as far as it goes.

    References:
        Mishkin and Matas, `All you need is a good init
        <https://arxiv.org/abs/1511.06422>`_, 2016
    """
    params = variables["params"]
    named, treedef = flatten_with_path(params)
    kernels = kernel_positions(params)
    leaves = [x for _, x in named]
    for kernel in kernels_of(params):
        leaves[kernel.leaf] = _orthogonal(leaves[kernel.leaf], kernel.output_axes)
    paths = [path_string(path) for path, _ in named]
    layers = [paths[i].rpartition("/")[0] for i in kernels]

    def normalize(_: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
        seen = {**variables, "params": treedef.unflatten(leaves)}
        outputs = model.outputs(seen, images, None)
        leaves = list(leaves)
        for i, layer in zip(kernels, layers, strict=True):
            made = outputs[layer]
            if f"{layer}/bias" in paths:
                bias = leaves[paths.index(f"{layer}/bias")]
                made -= jnp.broadcast_to(bias, made.shape)
            deviation = jnp.std(made)
            leaves[i] = leaves[i] / jnp.where(deviation > 0, deviation, 1)
        return leaves

    # Outputs are linear in the layer's kernel: once what is before it is right, and it
    # is divided, it is right for good. As many passes as layers are enough for all.
    return treedef.unflatten(jax.lax.fori_loop(0, len(kernels), normalize, leaves))


def metainit(
    model: Model, variables: Variables, images: jax.Array, steps: int = 500
) -> Any:
    """Norms of kernels at which a step along the gradient hardly changes the gradient.

    Steps on random images and labels, of the sign of the derivative of
    `gradient_quotient` by each norm: a rate of 0.1, and a momentum of 0.9. A norm
    changes by at most one a step, as in the authors' code. For networks with one label
    an image.

    References:
        Dauphin and Schoenholz, `MetaInit: Initializing learning by learning to
        initialize <https://openreview.net/forum?id=SyeO5BBeUr>`_, 2019
    """
    leaves, treedef = jax.tree.flatten(variables["params"])
    kernels = kernel_positions(variables["params"])

    def of(leaves: list[jax.Array], key: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        drawn = jax.random.normal(keys[0], images.shape)
        given = {**variables, "params": treedef.unflatten(leaves)}
        classes = model.apply(given, images[:1], None)[0].shape[-1]
        labels = jax.random.randint(keys[1], (len(images),), 0, classes)
        return gradient_quotient(model, given, drawn, labels)

    def step(i: jax.Array, carry: Any) -> Any:
        leaves, speeds = list(carry[0]), carry[1]
        slopes = jax.grad(of)(leaves, jax.random.fold_in(jax.random.key(0), i))
        norms = jnp.stack([l2_norm(leaves[k]) for k in kernels])
        by_norm = jnp.stack([(leaves[k] * slopes[k]).sum() for k in kernels])
        signs = jnp.sign(by_norm / norms)
        # What is not a number has the sign 0 in PyTorch.
        speeds = 0.9 * speeds - 0.1 * jnp.where(jnp.isnan(signs), 0, signs)
        factors = (norms + speeds) / norms
        for factor, k in zip(factors, kernels, strict=True):
            leaves[k] = factor * leaves[k]
        return leaves, speeds

    start = leaves, jnp.zeros(len(kernels))
    return treedef.unflatten(jax.lax.fori_loop(0, steps, step, start)[0])


def gradient_quotient(
    model: Model, variables: Variables, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """How much a step along the gradient changes the gradient: a mean, shape=().

    Of |(g − Hg) / (g ± 10⁻⁵) − 1| over all parameters, with the sign of g, where g is
    the gradient of the mean cross-entropy and H its Hessian.
    """

    def loss(params: Any) -> jax.Array:
        logits, _ = model.apply({**variables, "params": params}, images, None)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return loss.mean()

    params = variables["params"]
    g = jax.grad(loss)(params)
    _, curved = jax.jvp(jax.grad(loss), (params,), (g,))

    def deviations(g: jax.Array, curved: jax.Array) -> jax.Array:
        away = jnp.where(g >= 0, 1e-5, -1e-5)
        return jnp.abs((g - curved) / (g + away) - 1).ravel()

    return jnp.concatenate(jax.tree.leaves(jax.tree.map(deviations, g, curved))).mean()


def initialization_named(name: str) -> Mend | None:
    """The function of a name of `Initialization`; None for kernels as they are."""
    check_name("initialization", name, get_args(Initialization))
    mends = {"rescaled": rescaled, "lsuv": lsuv, "metainit": metainit}
    return mends.get(name)


def _orthogonal(x: jax.Array, output_axes: tuple[int, ...]) -> jax.Array:
    """The orthogonal factor of a kernel, whatever its scale."""
    matrix = as_matrices(x, (), output_axes)
    is_wide = matrix.shape[0] < matrix.shape[1]
    q, r = jnp.linalg.qr(matrix.T if is_wide else matrix)
    # Signs that make the factor that of a matrix with a positive diagonal: as random as
    # the kernel was.
    q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)[None]
    return from_matrices(q.T if is_wide else q, x.shape, (), output_axes)
