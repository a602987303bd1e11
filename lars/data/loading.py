"""From a data set's name to arrays on the device."""

import contextlib
import functools
import importlib
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DATASETS: dict[str, str] = {"digits": "lars.data.digits:Digits"}
"""Where the builder of each data set is: importing one takes seconds."""


class Split(NamedTuple):
    """A part of a data set."""

    images: jax.Array  # [N, H, W, C], float32, standardised
    labels: jax.Array  # [N], int32


class Data(NamedTuple):
    """A data set in three disjoint parts.

    Pixels are standardised by the mean and the standard deviation of all pixels of the
    training images.
    """

    train: Split  # what steps are taken on
    validation: Split  # what settings are chosen on
    test: Split  # what is reported

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return int(self.train.labels.max()) + 1


@functools.cache
def load(name: str, data_dir: str | None = None) -> Data:
    """Loads a data set, preparing it first if it is not on disk yet.

    Args:
        name: one of `DATASETS`.
        data_dir: where prepared data is, and goes; None is tensorflow-datasets' own
            place, the environment's ``TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.

    Returns:
        The data on the default device. A second call returns the same arrays.

    Raises:
        ValueError: for an unknown name.
        OSError: if the data cannot be written to its place.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}.")
    module, builder_name = DATASETS[name].split(":")
    builder_class = getattr(importlib.import_module(module), builder_name)

    try:
        builder = builder_class(data_dir=data_dir, file_format="array_record")
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            builder.download_and_prepare()
    except OSError as error:
        place = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        raise OSError(
            f"data set {name!r} cannot be prepared in {place} ({error}); set "
            "TFDS_DATA_DIR to a folder that can be written."
        ) from error

    raw = {split: _read(builder, split) for split in Data._fields}
    pixels = raw["train"][0]
    mean, deviation = pixels.mean(), pixels.std()
    return Data(
        **{
            split: Split(
                jnp.asarray((images - mean) / deviation, jnp.float32),
                jnp.asarray(labels, jnp.int32),
            )
            for split, (images, labels) in raw.items()
        }
    )


def _read(builder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split in float64, and their labels."""
    source = builder.as_data_source(split)
    examples = source.__getitems__(range(len(source)))  # one read, not one each
    images = np.stack([example["image"] for example in examples]).astype(np.float64)
    return images, np.array([example["label"] for example in examples])
