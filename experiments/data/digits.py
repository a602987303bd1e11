"""The embedded data set: handwritten digits that come with scikit-learn."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import embedded
from experiments.data.array_cache import Arrays


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 images of 8x8 pixels, in fixed, disjoint and stratified splits.

    The test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
    UCI repository, https://doi.org/10.24432/C50P49) as scikit-learn ships it, so that
    preparing it takes seconds and no network. Pixels are counts from 0 to 16.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    # Not `Image`, which knows 0 to 255 only and would compress these.
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {
            split: self._generate_examples(*part)
            for split, part in embedded.digits().items()
        }

    def _generate_examples(
        self, numbers: np.ndarray, arrays: Arrays
    ) -> Iterator[tuple[int, dict]]:
        for i, image, label in zip(numbers.tolist(), *arrays, strict=True):
            yield i, {"image": image, "label": int(label)}
