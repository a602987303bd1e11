"""From a data set's name to arrays on the device."""

import functools
import os
import sys
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from experiments.data import prepared, text
from experiments.data.array_cache import Arrays, cached
from experiments.data.arrays import Data, Split

if TYPE_CHECKING:
    from PIL import Image  # which bare machines lack, as they do tqdm

_CHUNK = 1000
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@functools.cache
def load(name: str, data_dir: str | os.PathLike | None = None) -> Data:
    """Loads a data set of images of one size.

    Where a set has no validation split, or no test split with labels, the last tenth of
    its training images (10,000 at most) is the validation set; see
    `experiments.data.prepared.spans`. Images of bytes (``tfds.features.Image``) are
    decoded once and then kept; see `experiments.data.array_cache`. Images of numbers
    (``tfds.features.Tensor``) are standardised here, by the mean and the standard
    deviation of all training pixels.

    Args:
        name: the name in tensorflow-datasets, ``mnist``, ``cifar10``, ...; ``digits``,
            which comes with this package and is prepared at once;
            ``python_reference``, a text (`experiments.data.text`); or the name of a
            prepared set of one's own.
        data_dir: where prepared data is; None is tensorflow-datasets' own place, the
            environment's ``TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.

    Returns:
        The data on the default device. A second call returns the same arrays.

    Raises:
        ValueError: for an unknown name, or a set that is not one of images of one size
            with a class each, or cannot be read.
        FileNotFoundError: if the set is not prepared; the message says how it is.
        OSError: if the place of the digits cannot be written.
    """
    if name == text.NAME:
        return text.load()
    builder = prepared.find(name, data_dir)
    shape = builder.info.features["image"].shape
    if len(shape) != 3 or None in shape:
        raise ValueError(
            f"the images of data set {name!r} have shape {shape}; only a fixed height, "
            "width and number of channels makes an array. experiments.data.stream "
            "reads images of all sizes."
        )
    has_files = prepared.has_files(builder)
    read = _bytes_of if has_files else _numbers_of
    with prepared.readable(builder.info.full_name, builder.data_path):
        spans = prepared.spans(builder)
        splits = {span.split for span in spans.values()}
        whole = {split: read(builder, split) for split in splits}
    parts = {
        part: Arrays(*(x[span.first : span.stop] for x in whole[span.split]))
        for part, span in spans.items()
    }
    for part, arrays in parts.items():
        if arrays.labels.min() < 0:
            raise ValueError(f"data set {name!r} has {part} images without a label.")

    pixels = parts["train"].images
    if has_files:
        mean, deviation = _channel_statistics(pixels)
    else:
        center, scale = pixels.mean(), pixels.std()
        parts = {
            part: arrays._replace(images=(arrays.images - center) / scale)
            for part, arrays in parts.items()
        }
        mean, deviation = np.zeros(shape[-1]), np.ones(shape[-1])
    dtypes = jnp.uint8 if has_files else jnp.float32, jnp.int32
    return Data(
        **{part: Split(*map(jnp.asarray, x, dtypes)) for part, x in parts.items()},
        mean=jnp.asarray(mean, jnp.float32),
        deviation=jnp.asarray(deviation, jnp.float32),
    )


def _numbers_of(builder: Any, split: str) -> Arrays:
    """All images of a split in float64, and their labels."""
    source = prepared.records(builder, split)
    examples = source.__getitems__(range(len(source)))  # one read, not one each
    images = np.stack([example["image"] for example in examples]).astype(np.float64)
    return Arrays(images, np.array([example["label"] for example in examples]))


def _bytes_of(builder: Any, split: str) -> Arrays:
    """All images of a split in uint8, and their labels."""

    from tqdm import tqdm

    def decode() -> Arrays:
        source = prepared.records(builder, split)
        count = len(source)
        shape = builder.info.features["image"].shape
        arrays = Arrays(np.empty((count, *shape), np.uint8), np.empty(count, np.int32))
        with tqdm(
            desc=f"decoding {builder.info.full_name}, {split}",
            total=count,
            unit=" images",
            delay=2,  # seconds: what takes less needs no bar
            mininterval=0.1 if sys.stderr.isatty() else 10,
        ) as progress:
            for first in range(0, count, _CHUNK):
                chunk = range(first, min(first + _CHUNK, count))
                examples = source.__getitems__(chunk)
                for i, example in zip(chunk, examples, strict=True):
                    where = f"data set {builder.info.full_name}, {split}, record {i}"
                    arrays.images[i] = _pixels(example["image"], shape, where)
                    arrays.labels[i] = example["label"]
                progress.update(len(chunk))
        return arrays

    return cached(builder, split, decode)


def _pixels(file: bytes, shape: tuple[int, ...], where: str) -> np.ndarray:
    def read(image: "Image.Image") -> np.ndarray:
        return np.asarray(image.convert(_MODES[shape[-1]])).reshape(shape)

    return prepared.decode(file, read, where)


def _channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of each channel, from exact sums."""
    sums, squares = np.zeros((2, *images.shape[1:]), np.uint64)
    for first in range(0, len(images), _CHUNK):
        chunk = images[first : first + _CHUNK].astype(np.uint32)
        sums += chunk.sum(0)
        squares += np.square(chunk).sum(0)
    sums, squares = sums.sum((0, 1)), squares.sum((0, 1))
    count = images[..., 0].size
    # Python's integers have no end: a difference of float64 could lose digits.
    exact = zip(map(int, sums), map(int, squares), strict=True)
    variances = np.array([(count * s - m**2) / count**2 for m, s in exact])
    # A channel without variation has nothing to divide by.
    return sums / count, np.sqrt(np.where(variances > 0, variances, 1.0))
