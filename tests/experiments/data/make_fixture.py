"""Makes the committed part of Fashion-MNIST from the whole of it.

    python -m tests.experiments.data.make_fixture

Needs the complete set: prepared by tensorflow-datasets in its usual place. The first
images of each class go, as they are, into a set of the same name, version and format.
"""

import collections
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from experiments.data import prepared

PLACE = Path(__file__).parent / "fixtures" / "tfds"
PER_CLASS = {"train": 32, "test": 10}


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """320 training and 100 test images of Fashion-MNIST, all classes alike."""

    name = "fashion_mnist"
    VERSION = tfds.core.Version("3.0.1")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            citation="Xiao, Rasul, Vollgraf 2017, https://arxiv.org/abs/1708.07747",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(split) for split in PER_CLASS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        source = prepared.records(prepared.find("fashion_mnist:3.0.1", None), split)
        taken = collections.Counter()
        for i in range(len(source)):
            example = source[i]
            if taken[example["label"]] < PER_CLASS[split]:
                taken[example["label"]] += 1
                yield i, {**example, "image": io.BytesIO(example["image"])}
            if taken.total() == 10 * PER_CLASS[split]:
                return


if __name__ == "__main__":
    shutil.rmtree(PLACE / "fashion_mnist", ignore_errors=True)
    FashionMnist(data_dir=PLACE, file_format="array_record").download_and_prepare()
    shutil.rmtree(PLACE / "downloads")  # an empty folder
