"""A data set as arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Split(NamedTuple):
    """A part of a data set."""

    images: jax.Array  # [N, H, W, C], uint8, or float32 and standardised
    labels: jax.Array  # [N], int32; or [N, T] of the T characters of a text


class Data(NamedTuple):
    """A data set in three disjoint parts, and what standardises its images.

    Images of bytes stay bytes, a quarter of the memory; `standardise` makes numbers of
    them where they are used.
    """

    train: Split  # what steps are taken on
    validation: Split  # what settings are chosen on
    test: Split  # what is reported
    mean: jax.Array  # [C], float32: of each channel of the training images
    deviation: jax.Array  # [C], float32: the standard deviation of the same

    @property
    def num_classes(self) -> int:
        """The number of classes, up to the last that has an image."""
        splits = (self.train, self.validation, self.test)
        return max(int(split.labels.max()) for split in splits) + 1


def standardise(images: jax.Array, mean: jax.Array, deviation: jax.Array) -> jax.Array:
    """Gives the channels of the training images mean 0 and standard deviation 1.

    From images [..., H, W, C] of bytes or numbers to float32 ones. Mean 0 and deviation
    1 leave numbers as they are.
    """
    channels = (1,) * (jnp.ndim(images) - 1) + (-1,)
    mean = jnp.reshape(mean, channels)
    return (jnp.asarray(images, jnp.float32) - mean) / jnp.reshape(deviation, channels)
