"""The embedded digits as a file, which NumPy reads alone."""

from pathlib import Path

import numpy as np

from experiments.data.array_cache import Arrays

FILE = Path(__file__).with_name("digits.npz")
"""The test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
UCI repository, https://doi.org/10.24432/C50P49, CC BY 4.0), in the order of
scikit-learn, with the split of each image: 0 for training, 1 for validation, 2 for the
test."""

SPLITS = ("train", "validation", "test")


def digits() -> dict[str, tuple[np.ndarray, Arrays]]:
    """The splits by name: the numbers of the images in the whole set, and the images.

    Images are uint8 [N, 8, 8, 1], from 0 to 16; labels int32 [N].
    """
    with np.load(FILE) as file:
        images, labels, of_split = (file[x] for x in ("images", "labels", "split"))
    found = {}
    for number, name in enumerate(SPLITS):
        numbers = np.flatnonzero(of_split == number)
        labels_of_split = labels[numbers].astype(np.int32)
        found[name] = numbers, Arrays(images[numbers][..., None], labels_of_split)
    return found
