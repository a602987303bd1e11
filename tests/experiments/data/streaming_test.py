"""Streamed batches: the same for any processes and workers, and wherever they begin."""

import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import data as datasets
from experiments.data import streaming
from tests.experiments.data.photos import TRAIN, Photos, jpeg

SIZE = 24


@pytest.fixture(scope="module")
def photos(photos_dir):
    return datasets.stream("photos", SIZE, photos_dir)


def take(count, iterator):
    batches = list(itertools.islice(iterator, count))
    if hasattr(iterator, "close"):
        iterator.close()
    return batches


def joined(parts):
    """One batch from the parts of the processes."""
    return datasets.Split(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(batch.images, other.images)
        np.testing.assert_array_equal(batch.labels, other.labels)


def test_a_stream_says_what_it_holds(photos):
    # Three of thirty training images are held out; ImageNet's test set has no labels.
    assert photos.sizes == {"train": 27, "validation": 3, "test": 7}
    assert photos.num_train == 27
    assert photos.num_classes == 37
    batch = next(photos.train_batches(seed=0, batch_size=4))
    assert batch.images.shape == (4, SIZE, SIZE, 3)
    assert batch.images.dtype == np.uint8
    assert batch.labels.dtype == np.int32
    standard = datasets.standardise(batch.images, photos.mean, photos.deviation)
    expected = (batch.images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(standard, expected, atol=1e-5)


def test_the_seed_alone_decides(photos):
    first = take(3, photos.train_batches(seed=1, batch_size=4))
    assert_same(take(3, photos.train_batches(seed=1, batch_size=4)), first)
    # Neither are the epochs of one seed those of the next, one later.
    epochs = {
        tuple(epoch.reshape(-1).tolist())
        for seed in range(3)
        for epoch in np.split(labels_of(photos, seed, 27, 3), 3)
    }
    assert len(epochs) == 9


def labels_of(photos, seed, batch_size, count):
    batches = photos.train_batches(seed=seed, batch_size=batch_size)
    return np.concatenate([batch.labels for batch in take(count, batches)])


def test_every_epoch_visits_every_image_once_though_batches_straddle_epochs(photos):
    labels = labels_of(photos, 0, 6, 9)  # two epochs of 27 images
    train = np.sort(labels[:27])
    np.testing.assert_array_equal(np.sort(labels[27:]), train)
    assert len(set(train)) == 27
    held_out = [
        b.labels[mask] for b, mask in photos.evaluation_batches("validation", 2)
    ]
    tested = [b.labels[mask] for b, mask in photos.evaluation_batches("test", 4)]
    everything = np.concatenate([train, *held_out, *tested])
    np.testing.assert_array_equal(np.sort(everything), np.arange(37))


def test_an_image_is_cropped_anew_in_every_epoch(photos):
    batches = take(2, photos.train_batches(seed=0, batch_size=27))
    first, second = (b.images[np.argsort(b.labels)] for b in batches)
    assert np.all(np.any(first != second, axis=(1, 2, 3)))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_batch_of_one(photos, count):
    settings = {"seed": 0, "batch_size": 6, "first_step": 2}
    whole = take(6, photos.train_batches(**settings))
    shares = [{"process_index": i, "process_count": count} for i in range(count)]
    parts = [take(6, photos.train_batches(**settings, **share)) for share in shares]
    assert_same([joined(batch) for batch in zip(*parts, strict=True)], whole)


def test_training_resumes_at_a_step(photos):
    whole = take(8, photos.train_batches(seed=0, batch_size=5))
    for step in (1, 7):
        rest = photos.train_batches(seed=0, batch_size=5, first_step=step)
        assert_same(take(8 - step, rest), whole[step:])


def test_workers_read_the_same_batches(photos):
    settings = {"seed": 0, "batch_size": 5, "first_step": 1}
    whole = take(7, photos.train_batches(**settings))
    assert_same(take(7, photos.train_batches(**settings, num_workers=2)), whole)


def test_workers_need_no_absl_program(photos_dir):
    program = f"""
from experiments import data

if __name__ == "__main__":
    photos = data.stream("photos", {SIZE}, {photos_dir!r})
    for part in range(2):
        batches = photos.evaluation_batches("test", 4, part, 2, num_workers=1)
        print([batch.labels[mask].tolist() for batch, mask in batches])
"""
    file = Path(photos_dir) / "program.py"
    file.write_text(program)
    run = subprocess.run(
        [sys.executable, "-W", "error", str(file)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    parts = [json.loads(line) for line in run.stdout.splitlines()]
    assert [[len(batch) for batch in part] for part in parts] == [[2, 2], [2, 1]]
    assert {x for part in parts for batch in part for x in batch} == set(range(30, 37))


def test_evaluation_sees_each_image_once_and_fills_up(photos):
    batches = list(photos.evaluation_batches("test", 4))
    assert [mask.tolist() for _, mask in batches] == [[True] * 4, [True] * 3 + [False]]
    assert batches[1][0].images.shape == (4, SIZE, SIZE, 3)
    assert not batches[1][0].images[3].any()
    assert set(np.concatenate([b.labels[m] for b, m in batches])) == set(range(30, 37))

    # As many batches for a process that has nothing but filling in the last.
    parts = [list(photos.evaluation_batches("test", 6, i, 6)) for i in range(6)]
    assert [len(part) for part in parts] == [2] * 6
    assert [part[1][1].tolist() for part in parts] == [[True]] + [[False]] * 5
    whole = list(photos.evaluation_batches("test", 6))
    for step in range(2):
        assert_same([joined([part[step][0] for part in parts])], [whole[step][0]])


def test_evaluation_takes_the_centre(photos):
    (batch, _), *_ = photos.evaluation_batches("test", 7)
    for pixels, label in zip(batch.images, batch.labels, strict=True):
        image = Image.open(io.BytesIO(jpeg(int(label)))).convert("RGB")
        shorter = round(SIZE * 256 / 224)
        scale = shorter / min(image.size)
        width, height = (round(x * scale) for x in image.size)
        left, upper = (width - SIZE) // 2, (height - SIZE) // 2
        whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(
            pixels, whole[upper : upper + SIZE, left : left + SIZE]
        )


def test_random_boxes_have_the_areas_and_aspects_that_are_said():
    width, height = 500, 375
    generators = map(np.random.default_rng, range(4000))
    boxes = [streaming._random_box(rng, width, height) for rng in generators]
    left, upper, right, lower = np.transpose(boxes)
    assert (left.min(), upper.min()) == (0, 0)
    assert (right.max(), lower.max()) == (width, height)
    areas = (right - left) * (lower - upper) / (width * height)
    aspects = (right - left) / (lower - upper)
    assert areas.min() == pytest.approx(0.08, rel=0.02)
    assert 0.9 < areas.max() <= 1
    assert aspects.min() == pytest.approx(3 / 4, rel=0.02)
    assert aspects.max() == pytest.approx(4 / 3, rel=0.02)
    # All boxes of such an area fit: areas are uniform, as many boxes high as wide.
    small = areas < 0.5
    assert np.mean(areas[small]) == pytest.approx((0.08 + 0.5) / 2, abs=0.01)
    assert np.mean(aspects[small] > 1) == pytest.approx(0.5, abs=0.04)
    assert np.mean((left + right)[small]) == pytest.approx(width, rel=0.02)


@pytest.mark.parametrize(
    ("size", "box"),
    [((10, 400), (0, 193, 10, 206)), ((400, 9), (194, 0, 206, 9)), ((1, 1), None)],
)
def test_images_that_no_box_fits_give_their_middle(size, box):
    found = streaming._random_box(np.random.default_rng(0), *size)
    assert found == (box or (0, 0, 1, 1))


def test_a_crop_is_a_part_of_the_image_and_half_of_them_are_flipped():
    # Red grows to the right, green downwards; blue is the same everywhere.
    ramp = np.linspace(0, 255, 160).astype(np.uint8)
    pixels = np.stack(
        [*np.meshgrid(ramp, ramp), np.full((160, 160), 77, np.uint8)], axis=-1
    )

    class Ramps:
        def read(self, position):
            return Image.fromarray(pixels), np.int32(position)

    crop = streaming._TrainImage(Ramps(), SIZE)
    flipped = []
    for i in range(400):
        images, label = crop(i, np.random.default_rng(i))
        assert label == i
        red, green, blue = images.astype(int).mean((0, 1))
        assert abs(blue - 77) < 1
        assert 0 < red < 255
        assert 0 < green < 255
        to_right, downwards = np.diff(images[..., 0].astype(int)), images[..., 1]
        assert np.all(np.diff(downwards.astype(int), axis=0) >= -1)
        flipped.append(to_right.mean() < 0)
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    "file", [jpeg(TRAIN + 2)[:-400], b"not an image"], ids=["cut", "none"]
)
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, file):
    class Damaged(Photos, skip_registration=True):
        name = "damaged"

        def _generate_examples(self, first, stop):
            for key, example in super()._generate_examples(first, stop):
                if key == TRAIN + 2:
                    example["image"] = io.BytesIO(file)
                yield key, example

    Damaged(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    damaged = datasets.stream("damaged", SIZE, str(tmp_path))
    message = r"data set 'damaged', split 'validation', record \d: .* decoded \("
    with pytest.raises(ValueError, match=message):
        list(damaged.evaluation_batches("test", 4))


def test_what_does_not_fit_is_refused(photos, digits, photos_dir, tmp_path):
    refused = [
        ({"process_count": 3}, "multiple of the 3 processes, got 4"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 28}, "at most the 27 training images, got 28"),
        ({"process_index": 2, "process_count": 2}, "from 0 to 1 with 2 processes"),
        ({"first_step": -1}, "first_step .* at least 0, got -1"),
        ({"seed": -1}, "seed .* at least 0, got -1"),
        ({"num_workers": -1}, "num_workers .* at least 0, got -1"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            photos.train_batches(**{"seed": 0, "batch_size": 4, **arguments})
    with pytest.raises(ValueError, match="train, validation, test, got 'tset'"):
        photos.evaluation_batches("tset", 4)
    with pytest.raises(ValueError, match=r"image_size must be .* at least 1, got 0"):
        datasets.stream("photos", 0, photos_dir)
    with pytest.raises(ValueError, match="stream reads images of all sizes"):
        datasets.load("photos", photos_dir)
    with pytest.raises(ValueError, match="load reads them"):
        datasets.stream("digits", SIZE, str(tmp_path))
    with pytest.raises(ValueError, match="did you mean photos"):
        datasets.stream("photo", SIZE, photos_dir)
