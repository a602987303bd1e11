"""The embedded data is scikit-learn's, all of it, in disjoint and fixed splits."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lars import data as datasets


def test_the_splits_are_the_original_images_each_once(digits):
    original = load_digits()
    images = np.concatenate([np.asarray(split.images) for split in digits])
    labels = np.concatenate([np.asarray(split.labels) for split in digits])
    assert [len(split.labels) for split in digits] == [1077, 360, 360]
    # Undo the standardisation: pixels are the whole numbers from 0 to 16.
    pixels = np.interp(images, [images.min(), images.max()], [0, 16]).round()
    np.testing.assert_allclose(
        np.interp(pixels, [0, 16], [images.min(), images.max()]), images, atol=1e-5
    )

    def in_order(pixels, labels):
        rows = np.column_stack([pixels.reshape(len(labels), 64), labels])
        return rows[np.lexsort(rows.T)]

    np.testing.assert_array_equal(
        in_order(pixels, labels), in_order(original.images, original.target)
    )


def test_no_image_is_in_two_splits(digits):
    seen = [{image.tobytes() for image in np.asarray(s.images)} for s in digits]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_training_pixels_have_mean_zero_and_deviation_one(digits):
    np.testing.assert_allclose(np.mean(digits.train.images), 0, atol=1e-6)
    np.testing.assert_allclose(np.std(digits.train.images), 1, rtol=1e-6)
    assert digits.train.images.dtype == np.float32
    assert digits.train.images.shape[1:] == (8, 8, 1)


def test_every_split_has_every_class_alike(digits):
    shares = [np.bincount(split.labels) / len(split.labels) for split in digits]
    np.testing.assert_allclose(shares[1], shares[0], atol=0.01)
    np.testing.assert_allclose(shares[2], shares[0], atol=0.01)
    assert digits.num_classes == 10


def test_preparing_again_gives_the_same_splits(digits, tmp_path):
    again = datasets.load("digits", str(tmp_path))
    for one, other in zip(digits, again, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_loading_twice_gives_the_same_arrays(tmp_path):
    first = datasets.load("digits", str(tmp_path))
    assert datasets.load("digits", str(tmp_path)) is first


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="digits, got 'mnist-1d'"):
        datasets.load("mnist-1d")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="TFDS_DATA_DIR"):
        datasets.load("digits", str(tmp_path / "file"))


def test_tensorflow_is_not_imported(tmp_path):
    program = (
        "import sys; from lars import data; "
        f"data.load('digits', {str(tmp_path)!r}); print('tensorflow' in sys.modules)"
    )
    assert printed_by(program).splitlines()[-1] == "False"


def test_importing_lars_imports_nothing_beyond_jax_and_optax():
    program = (
        "import sys, jax, optax; before = set(sys.modules); import lars; "
        "print({m.split('.')[0] for m in set(sys.modules) - before})"
    )
    assert printed_by(program).strip() == "{'lars'}"


def printed_by(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
