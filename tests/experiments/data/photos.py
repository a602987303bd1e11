"""A data set of JPEG files of many sizes, in the place of ImageNet."""

import io

import matplotlib.cbook
import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds
from PIL import Image

TRAIN, TEST = 30, 7


class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Parts of three photographs, each its own class, so that a label names an image.

    The test images have no labels, as ImageNet's have none; and its splits and names.
    """

    name = "photos"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=TRAIN + TEST),
                    "file_name": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, TRAIN),
            "validation": self._generate_examples(TRAIN, TRAIN + TEST),
            "test": self._generate_examples(TRAIN + TEST, TRAIN + TEST + 3),
        }

    def _generate_examples(self, first, stop):
        for i in range(first, stop):
            label = i if i < TRAIN + TEST else -1
            yield i, {"image": io.BytesIO(jpeg(i)), "label": label, "file_name": f"{i}"}


def jpeg(i, quality=90):
    """The file of an image. All sizes and positions differ, and some are grey."""
    paths = [
        *sklearn.datasets.load_sample_images().filenames,
        matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False),
    ]
    rng = np.random.default_rng(i)
    with Image.open(paths[i % 3]) as photo:
        left, upper, width, height = rng.integers([0, 0, 30, 30], [300, 300, 180, 120])
        part = photo.crop((left, upper, left + width, upper + height))
    file = io.BytesIO()
    part.convert("L" if i % 10 == 9 else "RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()
