"""AlexNet in miniature: small enough to be trained hundreds of times on two cores."""

from typing import Any

import flax.linen as nn
import jax

from experiments.checks import check_count
from experiments.networks.alexnet import plain_batch_norm
from experiments.networks.convolution import convolve
from experiments.networks.model import Model, as_model, max_pool

BIAS = 0.01
"""What biases begin at, as in the authors' AlexNet-BN: LARS has no ratio for zeros."""


def miniature_alexnet(
    num_classes: int, *, patch_size: int, width: int, batch_norm: bool
) -> Model:
    """A network in AlexNet's manner, without or with batch normalization.

    A first convolution with a stride (here as large as its kernel), two of 3x3, a
    hidden layer and an output layer. After each convolution comes the rectifier, then a
    2x2 maximum (not after the first, nor where one pixel is left), then, in the second
    form, batch normalization as in AlexNet-BN: without scale and shift, and with
    ε = 1e-4. All layers have biases, which begin at 0.01.

    Kernels are drawn from N(0, 2 / fan_in), and there is neither dropout nor local
    response normalization: AlexNet's own 0.01 would make the signal vanish in layers
    this narrow.

    Args:
        num_classes: number of logits.
        patch_size: pixels on a side of the first kernel, and its stride.
        width: channels of the first convolution; the others have 2 and 4 times as many,
            and the hidden layer 8 times.
        batch_norm: whether it is the second form.

    Raises:
        ValueError: for a size below one, with the value; and, when the model is called,
            for images that are smaller than a patch.

    References:
        You et al., `Large Batch Training of Convolutional Networks
        <https://arxiv.org/abs/1708.03888>`_, 2017, section 3
    """
    check_count("model.patch_size", patch_size)
    check_count("model.width", width)
    return as_model(_MiniatureAlexNet(num_classes, patch_size, width, batch_norm))


class _MiniatureAlexNet(nn.Module):
    num_classes: int
    patch_size: int
    width: int
    batch_norm: bool

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool) -> jax.Array:
        if min(images.shape[1:3]) < self.patch_size:
            raise ValueError(
                f"miniature_alexnet takes images of at least {self.patch_size}x"
                f"{self.patch_size} pixels, its patch_size, got "
                f"{images.shape[1]}x{images.shape[2]}."
            )
        settings: dict[str, Any] = {
            "kernel_init": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
            "bias_init": nn.initializers.constant(BIAS),
        }
        x = images
        for number in (1, 2, 3):
            is_first = number == 1
            side, stride = (self.patch_size,) * 2 if is_first else (3, 1)
            x = nn.Conv(
                self.width * 2 ** (number - 1),
                (side, side),
                stride,
                padding="VALID" if is_first else "SAME",
                conv_general_dilated=convolve,
                name=f"conv{number}",
                **settings,
            )(x)
            x = nn.relu(x)
            if not is_first and min(x.shape[1:3]) > 1:
                x = max_pool(x, 2, 2, ceil=False)
            if self.batch_norm:
                x = plain_batch_norm(x, is_training, "float32", f"norm{number}")
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(8 * self.width, name="fc4", **settings)(x))
        return nn.Dense(self.num_classes, name="fc5", **settings)(x)
