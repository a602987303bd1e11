"""Data sets become arrays: all of them, in disjoint and fixed splits, unharmed."""

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tqdm
from PIL import Image
from sklearn.datasets import load_digits

from experiments import data as datasets
from experiments.data import array_cache, embedded, loading, prepared

FIXTURES = Path(__file__).parent / "fixtures" / "tfds"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Decoded images are kept in a place of the test's own."""
    place = tmp_path / "cache"
    monkeypatch.setenv("LARS_CACHE_DIR", str(place))
    return place


@pytest.fixture
def fashion_dir(tmp_path):
    """A copy of the part of Fashion-MNIST that is committed, which may be changed."""
    return shutil.copytree(FIXTURES, tmp_path / "tfds")


def prepare(data_dir, splits, image=None, label=None, version="1.0.0"):
    """Prepares a set named "own", known only by its files, of (image, label) pairs."""
    features = {
        "image": image or tfds.features.Image(shape=(4, 5, 3)),
        "label": label or tfds.features.ClassLabel(num_classes=7),
    }

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                split: (
                    (i, {"image": pixels, "label": label})
                    for i, (pixels, label) in enumerate(examples)
                )
                for split, examples in splits.items()
            }

        def _generate_examples(self):
            raise NotImplementedError

    Own(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return str(data_dir)


def pictures(count, seed=0, constant=None):
    """Pictures of noise with random labels; as PNG, and as arrays."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 4, 5, 3), np.uint8)
    if constant is not None:
        pixels[..., constant] = 9
    labels = rng.permutation(np.arange(count) % 7).tolist()
    return [(Image.fromarray(x), y) for x, y in zip(pixels, labels, strict=True)]


def in_order(images, labels):
    """The examples as rows, in an order that depends on nothing else."""
    rows = np.column_stack([np.reshape(images, (len(labels), -1)), labels])
    return rows[np.lexsort(rows.T)]


def joined(*splits):
    return [np.concatenate(x) for x in zip(*splits, strict=True)]


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_disjoint(data):
    seen = [{image.tobytes() for image in np.asarray(s.images)} for s in data[:3]]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


# The embedded digits


def test_the_splits_are_the_original_images_each_once(digits):
    original = load_digits()
    assert_disjoint(digits)
    images, labels = joined(*digits[:3])
    assert [len(split.labels) for split in digits[:3]] == [1077, 360, 360]
    # Undo the standardisation: pixels are the whole numbers from 0 to 16.
    pixels = np.interp(images, [images.min(), images.max()], [0, 16]).round()
    np.testing.assert_allclose(
        np.interp(pixels, [0, 16], [images.min(), images.max()]), images, atol=1e-5
    )
    np.testing.assert_array_equal(
        in_order(pixels, labels), in_order(original.images, original.target)
    )


def test_each_of_the_digits_is_in_the_file_under_its_number():
    original = load_digits()
    found = embedded.digits()
    numbers = np.concatenate([numbers for numbers, _ in found.values()])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(len(original.target)))
    for numbers, (images, labels) in found.values():
        np.testing.assert_array_equal(images[..., 0], original.images[numbers])
        np.testing.assert_array_equal(labels, original.target[numbers])


def test_training_pixels_have_mean_zero_and_deviation_one(digits):
    np.testing.assert_allclose(np.mean(digits.train.images), 0, atol=1e-6)
    np.testing.assert_allclose(np.std(digits.train.images), 1, rtol=1e-6)
    assert digits.train.images.dtype == np.float32
    assert digits.train.images.shape[1:] == (8, 8, 1)
    images = digits.train.images
    again = datasets.standardise(images, digits.mean, digits.deviation)
    np.testing.assert_array_equal(again, images)


def test_every_split_has_every_class_alike(digits):
    shares = [np.bincount(split.labels) / len(split.labels) for split in digits[:3]]
    np.testing.assert_allclose(shares[1], shares[0], atol=0.01)
    np.testing.assert_allclose(shares[2], shares[0], atol=0.01)
    assert digits.num_classes == 10


def test_preparing_again_gives_the_same_splits_and_loading_the_same_arrays(
    digits, tmp_path
):
    first = datasets.load("digits", str(tmp_path))
    assert_same(first, digits)
    assert datasets.load("digits", str(tmp_path)) is first


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="TFDS_DATA_DIR"):
        datasets.load("digits", str(tmp_path / "file"))


# Sets of images as files


def test_images_stay_bytes_and_their_statistics_are_those_of_training():
    data = datasets.load("fashion_mnist", FIXTURES)
    assert [split.images.shape for split in data[:3]] == [
        (288, 28, 28, 1),
        (32, 28, 28, 1),
        (100, 28, 28, 1),
    ]
    for split in data[:3]:
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert np.unique(split.labels).tolist() == list(range(10))
    assert data.num_classes == 10
    assert_disjoint(data)
    pixels = np.asarray(data.train.images, np.float64)
    np.testing.assert_allclose(data.mean, [pixels.mean()], rtol=1e-6)
    np.testing.assert_allclose(data.deviation, [pixels.std()], rtol=1e-6)
    standard = datasets.standardise(data.train.images, data.mean, data.deviation)
    assert standard.dtype == np.float32
    assert np.mean(standard) == pytest.approx(0, abs=1e-5)
    assert np.std(standard) == pytest.approx(1, rel=1e-5)

    # The last tenth of training is for validation.
    builder = prepared.find("fashion_mnist", FIXTURES)
    for name, first, split in (
        ("train", 0, data.train),
        ("train", 288, data.validation),
        ("test", 0, data.test),
    ):
        stored = builder.as_data_source(name)
        for i in range(0, len(split.labels), 17):
            np.testing.assert_array_equal(stored[first + i]["image"], split.images[i])
            assert stored[first + i]["label"] == split.labels[i]


def test_what_is_held_out_of_a_large_set_is_ten_thousand(tmp_path):
    place = prepare(tmp_path, {x: pictures(7) for x in ("train", "validation")})
    file = tmp_path / "own" / "1.0.0" / "dataset_info.json"
    info = json.loads(file.read_text())
    next(s for s in info["splits"] if s["name"] == "train")["shardLengths"] = [1281167]
    file.write_text(json.dumps(info))
    assert prepared.spans(prepared.find("own", place)) == {
        "train": ("train", 0, 1271167),
        "validation": ("train", 1271167, 1281167),
        "test": ("validation", 0, 7),
    }


def test_a_set_with_three_splits_keeps_them(tmp_path):
    splits = {
        "train": pictures(21),
        "validation": pictures(7, seed=1),
        "test": pictures(14, seed=2),
        "more": pictures(7, seed=3),
    }
    data = datasets.load("own", prepare(tmp_path, splits))
    for name, split in zip(data._fields[:3], data[:3], strict=True):
        images, labels = zip(*splits[name], strict=True)
        np.testing.assert_array_equal(in_order(*split), in_order(images, labels))
    pixels = np.asarray(data.train.images, np.float64)
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.deviation, pixels.std((0, 1, 2)), rtol=1e-6)


def test_of_several_versions_the_latest_is_read_or_the_one_that_is_named(tmp_path):
    for version, seed in (("1.0.0", 0), ("1.10.0", 1), ("1.9.0", 2)):
        splits = {x: pictures(20, seed) for x in ("train", "test")}
        place = prepare(tmp_path, splits, version=version)
    images, labels = zip(*pictures(20, seed=1), strict=True)
    expected = in_order(images, labels)
    for name in ("own", "own:1.10.0"):
        np.testing.assert_array_equal(
            in_order(*datasets.load(name, place).test), expected
        )
    older = datasets.load("own:1.0.0", place)
    assert not np.array_equal(in_order(*older.test), expected)


def test_a_channel_without_variation_is_not_divided_by_zero(tmp_path):
    splits = {x: pictures(14, constant=1) for x in ("train", "test")}
    data = datasets.load("own", prepare(tmp_path, splits))
    assert data.mean[1] == 9
    assert data.deviation[1] == 1
    standard = datasets.standardise(data.test.images, data.mean, data.deviation)
    np.testing.assert_array_equal(standard[..., 1], 0)


def test_numbers_are_standardised_by_all_pixels(tmp_path):
    rng = np.random.default_rng(0)
    numbers = rng.normal(3, 2, (30, 2, 3, 2)).astype(np.float32)
    examples = list(zip(numbers, np.arange(30) % 7, strict=True))
    image = tfds.features.Tensor(shape=(2, 3, 2), dtype=np.float32)
    place = prepare(tmp_path, {"train": examples, "test": examples}, image)
    data = datasets.load("own", place)
    assert data.train.images.dtype == np.float32
    assert np.mean(data.train.images) == pytest.approx(0, abs=1e-6)
    assert np.std(data.train.images) == pytest.approx(1, rel=1e-6)
    np.testing.assert_array_equal(data.mean, [0, 0])
    np.testing.assert_array_equal(data.deviation, [1, 1])


def test_standardise_works_inside_a_step_on_bytes_and_numbers():
    images = np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3)
    mean, deviation = np.float32([1, 2, 3]), np.float32([4, 5, 6])
    for given in (images, images.astype(np.float32)):
        result = jax.jit(datasets.standardise)(given, mean, deviation)
        np.testing.assert_allclose(result, (images - mean) / deviation, rtol=1e-6)


# The cache of decoded images


def test_images_are_decoded_once(fashion_dir, cache, monkeypatch):
    first = datasets.load("fashion_mnist", fashion_dir)
    assert len(list(cache.glob("fashion_mnist/3.0.1/*.npz"))) == 2
    assert not list(cache.rglob(".*"))
    monkeypatch.setattr(loading, "_pixels", None)  # calling it would fail
    datasets.load.cache_clear()
    assert_same(datasets.load("fashion_mnist", fashion_dir), first)


def test_a_damaged_cache_is_made_again(fashion_dir, cache, capsys):
    first = datasets.load("fashion_mnist", fashion_dir)
    file = next(cache.rglob("train-*.npz"))
    whole = file.read_bytes()
    half = len(whole) // 2
    flipped = bytes([whole[half] ^ 16])
    for damaged in (whole[:half], whole[:half] + flipped + whole[half + 1 :], b""):
        file.write_bytes(damaged)
        datasets.load.cache_clear()
        capsys.readouterr()
        assert_same(datasets.load("fashion_mnist", fashion_dir), first)
        printed = capsys.readouterr()
        assert f"{file} is damaged" in printed.err
        assert not printed.out
        assert file.read_bytes() == whole


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    rng = np.random.default_rng(0)
    arrays = array_cache.Arrays(
        rng.integers(0, 256, (10, 2, 3, 1), np.uint8), np.arange(10, dtype=np.int32)
    )
    file = tmp_path / "arrays.npz"
    array_cache._write(file, arrays)
    whole = file.read_bytes()

    def is_noticed(content):
        file.write_bytes(content)
        try:
            found = array_cache._read(file, arrays.images.shape)
        except Exception:
            return True
        assert_same(found, arrays)  # where nothing of importance is, such as the time
        return False

    noticed = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        noticed += is_noticed(damaged)
    assert noticed > len(whole) / 2
    assert all(is_noticed(whole[:length]) for length in range(len(whole)))


def test_other_images_of_the_same_name_version_and_number_are_not_mistaken(tmp_path):
    for seed in range(2):
        splits = {x: pictures(20, seed) for x in ("train", "test")}
        data = datasets.load("own", prepare(tmp_path / str(seed), splits))
        images, labels = zip(*splits["test"], strict=True)
        np.testing.assert_array_equal(in_order(*data.test), in_order(images, labels))


def test_without_a_place_for_the_cache_loading_goes_on_and_shows_its_progress(
    fashion_dir, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LARS_CACHE_DIR", str(tmp_path / "file"))
    bar = tqdm.tqdm
    monkeypatch.setattr(tqdm, "tqdm", lambda **given: bar(**{**given, "delay": 0}))
    data = datasets.load("fashion_mnist", fashion_dir)
    assert len(data.train.labels) == 288
    printed = capsys.readouterr()
    assert "set LARS_CACHE_DIR to a folder that can be written" in printed.err
    assert "decoding fashion_mnist/3.0.1, train: 100%" in printed.err
    assert "320/320" in printed.err
    assert not printed.out


# What cannot be loaded


@pytest.mark.parametrize(
    ("name", "meant"), [("mnits", "mnist"), ("mnist-1d", "mnist"), ("digit", "digits")]
)
def test_an_unknown_name_is_refused(tmp_path, name, meant):
    with pytest.raises(ValueError, match=f"no data set '{name}' .* mean .*{meant}"):
        datasets.load(name, str(tmp_path))


def test_a_set_that_is_not_prepared_is_not_downloaded_but_explained(tmp_path):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load("cifar100", str(tmp_path))
    assert time.monotonic() - start < 10
    message = str(caught.value)
    command = message.split('python -c "')[1].split('"')[0]
    assert "pip install tensorflow-cpu && " in message
    assert "catalog/cifar100" in message
    # The command does what it should, apart from the download.
    program = command.replace(".download_and_prepare()", ".data_path.as_posix()")
    program = program.replace("; tfds", "; print(tfds") + ")"
    assert printed_by(program).strip() == f"{tmp_path}/cifar100/3.0.2"


def test_a_set_in_another_format_is_explained(fashion_dir):
    file = fashion_dir / "fashion_mnist" / "3.0.1" / "dataset_info.json"
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="in the format tfrecord"):
        datasets.load("fashion_mnist", fashion_dir)


UNLABELLED = pictures(7) + [(image, -1) for image, _ in pictures(3)]
NO_IMAGE = [*pictures(6), (io.BytesIO(b"not an image"), 6)]


@pytest.mark.parametrize(
    ("splits", "features", "message"),
    [
        (
            {"train": [("text", 1.5)]},
            (tfds.features.Text(), tfds.features.Scalar(np.float32)),
            r"needs .* has image: Text; label: Scalar",
        ),
        (
            {"train": pictures(7), "more": pictures(7)},
            (),
            r"own/1.0.0' needs .* has train, more",
        ),
        ({"train": UNLABELLED, "validation": UNLABELLED}, (), "without a label"),
        (
            {"train": pictures(20), "test": NO_IMAGE},
            (),
            r"own/1.0.0, test, record \d: .*decoded",
        ),
    ],
    ids=["no image or class", "one split", "no label", "no image file"],
)
def test_what_is_no_set_of_images_and_classes_is_refused(
    tmp_path, splits, features, message
):
    place = prepare(tmp_path, splits, *features)
    with pytest.raises(ValueError, match=message):
        datasets.load("own", place)


# Complete sets

# Images of each class for training and for the test, their mean and deviation, and the
# first labels, in the order in which the version is prepared everywhere.
COMPLETE = {
    "mnist": (  # http://yann.lecun.com/exdb/mnist
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        *([33.318], [78.567], [4, 1, 0, 7, 8, 1, 2, 7]),
    ),
    "fashion_mnist": (
        *([6000] * 10, [1000] * 10),
        *([72.940], [90.021], [2, 1, 8, 4, 1, 9, 2, 2]),
    ),
    "cifar10": (
        *([5000] * 10, [1000] * 10, [125.307, 122.950, 113.865]),
        *([62.993, 62.089, 66.705], [7, 8, 4, 4, 6, 5, 2, 9]),
    ),
}


def complete(name):
    try:
        return datasets.load(name)
    except FileNotFoundError:
        pytest.skip(f"the complete {name} is not prepared on this machine")


@pytest.mark.parametrize("name", COMPLETE)
def test_a_complete_set_is_the_published_one(name):
    data = complete(name)
    classes, test_classes, mean, deviation, first_labels = COMPLETE[name]
    assert len(data.validation.labels) == sum(classes) // 10
    images, labels = joined(data.train, data.validation)
    assert np.bincount(labels).tolist() == classes
    assert np.bincount(data.test.labels).tolist() == test_classes
    assert data.num_classes == 10
    # Of all training images, validation included, as everyone reports them.
    found = loading._channel_statistics(images)
    np.testing.assert_allclose(found, (mean, deviation), atol=1e-3)
    assert labels[:8].tolist() == first_labels


def test_the_committed_images_are_those_of_the_complete_set(cache):
    whole = complete("fashion_mnist")
    part = datasets.load("fashion_mnist", FIXTURES)
    for splits in (slice(0, 2), slice(2, 3)):
        rows = {row.tobytes() for row in in_order(*joined(*whole[splits]))}
        assert all(row.tobytes() in rows for row in in_order(*joined(*part[splits])))


# What is imported


def test_importing_the_data_sets_is_cheap_and_tensorflow_is_never_imported(tmp_path):
    program = (
        "import sys; from experiments import data; "
        "print({'grain', 'tensorflow_datasets', 'sklearn'} & set(sys.modules)); "
        f"data.load('digits', {str(tmp_path)!r}); "
        f"data.load('fashion_mnist', {str(FIXTURES)!r}); "
        "print('tensorflow' in sys.modules)"
    )
    assert printed_by(program).splitlines() == ["set()", "False"]


def printed_by(program):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
