"""Residual networks whose branches are normalized or not: what a block adds to x.

    perceptron     x + B act(A norm(x))
    convolutional  the same, with convolutions of 3x3 for A and B
    transformer    x + attention(norm(x)), and then as in the perceptron
    decoder        the same, where a position sees only those before it and itself

A first layer comes before the blocks, and an output layer after them. With
normalization the output layer, too, sees a normalized x.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.checks import check_count, check_name
from experiments.networks.convolution import convolve
from experiments.networks.model import ComputeDtype, Model, as_model
from experiments.networks.plain import ACTIVATIONS, GAINS, Activation

Normalization = Literal["none", "layer"]


class Settings(TypedDict):
    """The settings that all networks here have."""

    depth: int  # blocks
    width: int  # numbers that a position of x has
    activation: Activation
    normalization: Normalization
    compute_dtype: ComputeDtype


def residual_mlp(num_classes: int, **settings: Unpack[Settings]) -> Model:
    """A residual perceptron on flattened images.

    Raises:
        ValueError: for a number below one or an unknown name, with the value.
    """
    _check(settings)
    return as_model(_MLP(num_classes, **settings))


def residual_cnn(num_classes: int, **settings: Unpack[Settings]) -> Model:
    """A residual convolutional network of one resolution, and the mean over its pixels.

    Raises:
        ValueError: for a number below one or an unknown name, with the value.
    """
    _check(settings)
    return as_model(_CNN(num_classes, **settings))


def transformer(
    num_classes: int, *, patch: int, heads: int, **settings: Unpack[Settings]
) -> Model:
    """A transformer encoder on square patches of images, and the mean over them.

    The hidden layer of a block's perceptron has twice the width.

    Args:
        num_classes: number of logits.
        patch: the side of a patch, a divisor of those of the images.
        heads: of attention, a divisor of the width.
        **settings: those of `residual_mlp`.

    Raises:
        ValueError: for a number below one or an unknown name, with the value; when it
            is given images that patches do not cover.

    References:
        Dosovitskiy et al., `An Image is Worth 16x16 Words
        <https://arxiv.org/abs/2010.11929>`_, 2021
    """
    _check(settings)
    check_count("model.patch", patch)
    _check_heads(heads, settings)
    return as_model(_Transformer(num_classes, patch=patch, heads=heads, **settings))


def decoder(num_classes: int, *, heads: int, **settings: Unpack[Settings]) -> Model:
    """A transformer decoder on characters, with logits for the next one at each.

    It takes codes of characters as images [B, T, 1, 1], as those of
    `experiments.data.text`. Logits are [B, T, num_classes].

    Args:
        num_classes: how many characters there are.
        heads: of attention, a divisor of the width.
        **settings: those of `residual_mlp`.

    Raises:
        ValueError: for a number below one or an unknown name, with the value; when it
            is given images of more than one column or channel.
    """
    _check(settings)
    _check_heads(heads, settings)
    return as_model(_Decoder(num_classes, heads=heads, **settings))


def _check_heads(heads: int, settings: Settings) -> None:
    check_count("model.heads", heads)
    if settings["width"] % heads:
        raise ValueError(
            f"model.heads must divide model.width, got {heads} and {settings['width']}."
        )


def _check(settings: Settings) -> None:
    check_count("model.depth", settings["depth"])
    check_count("model.width", settings["width"])
    check_name("model.activation", settings["activation"], ACTIVATIONS)
    known = get_args(Normalization), get_args(ComputeDtype)
    check_name("model.normalization", settings["normalization"], known[0])
    check_name("model.compute_dtype", settings["compute_dtype"], known[1])


class _Network(nn.Module):
    num_classes: int
    depth: int
    width: int
    activation: str
    normalization: str
    compute_dtype: str

    def block(self, i: int, x: jax.Array, layer: Callable[..., Any]) -> jax.Array:
        """``x + B act(A norm(x))`` with two layers of the kind."""
        y = self.normalize(f"norm_{i}", x)
        y = ACTIVATIONS[self.activation](layer(name=f"block_{i}_in")(y))
        return x + layer(name=f"block_{i}_out")(y)

    def normalize(self, name: str, x: jax.Array) -> jax.Array:
        if self.normalization == "none":
            return x
        normalized = nn.LayerNorm(name=name)(x.astype(jnp.float32))
        return normalized.astype(x.dtype)

    def dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, name=name, **self.linear_settings())

    def linear_settings(self) -> dict[str, Any]:
        return {
            "dtype": jnp.dtype(self.compute_dtype),
            "kernel_init": nn.initializers.variance_scaling(
                GAINS[self.activation], "fan_in", "normal"
            ),
        }

    def output(self, x: jax.Array) -> jax.Array:
        return self.dense(self.num_classes, "output")(self.normalize("norm", x))


class _MLP(_Network):
    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        x = self.dense(self.width, "first")(images.reshape(len(images), -1))
        for i in range(self.depth):
            x = self.block(i, x, lambda name: self.dense(self.width, name))
        return self.output(x)


class _CNN(_Network):
    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        def layer(name: str) -> nn.Conv:
            return nn.Conv(
                self.width,
                (3, 3),
                conv_general_dilated=convolve,
                name=name,
                **self.linear_settings(),
            )

        x = layer("first")(images)
        for i in range(self.depth):
            x = self.block(i, x, layer)
        return self.output(jnp.mean(x, axis=(1, 2)))


class _Attending(_Network):
    heads: int

    def with_positions(self, x: jax.Array) -> jax.Array:
        place = nn.Embed(x.shape[1], self.width, name="position")
        return x + place(jnp.arange(x.shape[1]))[None].astype(x.dtype)

    def blocks(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        for i in range(self.depth):
            attention = nn.MultiHeadDotProductAttention(
                self.heads, dtype=x.dtype, name=f"attention_{i}"
            )
            x = x + attention(self.normalize(f"attention_norm_{i}", x), mask=mask)
            x = self.perceptron(i, x)
        return x

    def perceptron(self, i: int, x: jax.Array) -> jax.Array:
        widths = iter((2 * self.width, self.width))
        return self.block(i, x, lambda name: self.dense(next(widths), name))


class _Transformer(_Attending):
    patch: int

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        x = self.dense(self.width, "first")(patches_of(images, self.patch))
        return self.output(jnp.mean(self.blocks(self.with_positions(x)), axis=1))


class _Decoder(_Attending):
    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        if images.shape[2:] != (1, 1):
            raise ValueError(
                "a decoder reads codes of characters [batch, characters, 1, 1], got "
                f"the shape {images.shape}; take a text, or another model.name."
            )
        characters = images[:, :, 0, 0].astype(jnp.int32)
        embed = nn.Embed(self.num_classes, self.width, name="first")
        x = embed(characters).astype(jnp.dtype(self.compute_dtype))
        return self.output(
            self.blocks(self.with_positions(x), nn.make_causal_mask(characters))
        )


def patches_of(images: jax.Array, patch: int) -> jax.Array:
    """The pixels of square patches, [B, patches, patch² C], from the top left on."""
    batch, height, width, channels = images.shape
    if height % patch or width % patch:
        raise ValueError(
            f"model.patch must divide the sides of the images, got {patch} for "
            f"{height} by {width} pixels."
        )
    rows, columns = height // patch, width // patch
    x = images.reshape(batch, rows, patch, columns, patch, channels)
    shape = (batch, rows * columns, math.prod((patch, patch, channels)))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)
