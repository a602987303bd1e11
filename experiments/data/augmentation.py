"""Random crops and mirror images, made on the device inside the step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Augmentation(NamedTuple):
    """What may happen to a training image. Of static numbers."""

    crop_padding: int  # pixels of padding on each side before a crop of the old size
    flip: bool  # whether half of the images, at random, are mirrored left to right


def augment(key: jax.Array, images: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Crops and mirrors each image in its own way.

    He et al. 2016, section 4.2 (https://arxiv.org/abs/1512.03385): 4 pixels of padding
    and flips for CIFAR-10. What is drawn for an image depends on the key and on its
    place in the batch, and not on the number of devices that share the batch.

    Images [B, H, W, C] are standardised: the padding, which is zero, is the mean pixel.
    """
    count, height, width, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    if augmentation.flip:
        is_flipped = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
        images = jnp.where(is_flipped, images[:, :, ::-1], images)
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
