"""Random crops and mirror images, made on the device inside the step."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Flip = Literal["none", "random", "alternating"]


class Augmentation(NamedTuple):
    """What may happen to a training image. Of static values."""

    crop_padding: int  # pixels of padding on each side before a crop of the old size
    flip: Flip
    """Whether images are mirrored left to right: "random" is half of them, drawn for
    each step; "alternating" is half of all training images in one epoch and the others
    in the next (Jordan 2024, section 3.6, https://arxiv.org/abs/2404.00498)."""


def augment(
    key: jax.Array,
    images: jax.Array,
    augmentation: Augmentation,
    is_mirrored: jax.Array | None,
) -> jax.Array:
    """Crops and mirrors each image in its own way.

    He et al. 2016, section 4.2 (https://arxiv.org/abs/1512.03385): 4 pixels of padding
    and flips for CIFAR-10. What is drawn for an image depends on the key and on its
    place in the batch, and not on the number of devices that share the batch.

    Images [B, H, W, C] are standardised: the padding, which is zero, is the mean pixel.
    `is_mirrored` [B] is `alternating_flips` where flips alternate, and else None.
    """
    count, height, width, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    if augmentation.flip == "random":
        is_mirrored = jax.random.bernoulli(flip_key, shape=(count,))
    if is_mirrored is not None:
        chosen = is_mirrored.reshape(-1, 1, 1, 1)
        images = jnp.where(chosen, mirrored(images), images)
    padding = augmentation.crop_padding
    if padding:
        padded = jnp.pad(images, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
        corners = jax.random.randint(crop_key, (count, 2), 0, 2 * padding + 1)
        rows = corners[:, :1] + jnp.arange(height)[None]
        columns = corners[:, 1:] + jnp.arange(width)[None]
        # Two gathers of whole rows and columns: one of pixels is far slower on a CPU.
        images = jax.vmap(lambda image, row, column: image[row][:, column])(
            padded, rows, columns
        )
    return images


def alternating_flips(
    key: jax.Array, epoch: jax.Array, positions: jax.Array, num_images: int
) -> jax.Array:
    """Which images are mirrored in an epoch, [B], bool: in the next it is the others.

    `positions` [B] are their places among all training images.
    """
    drawn = jax.random.bernoulli(key, shape=(num_images,))
    return drawn[positions] ^ (epoch % 2 == 1)


def mirrored(images: jax.Array) -> jax.Array:
    """Images [B, H, W, C], left to right."""
    return images[:, :, ::-1]
