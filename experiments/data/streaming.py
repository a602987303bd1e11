"""Batches of a data set that is read while it is trained on, with Grain.

For sets whose images vary in size, or are too many to be held: ImageNet and the like.

    positions 0 … N-1 ─► shuffled, epoch after epoch ─► read, decode, crop, flip
      ─► batches ─► those of this process, in worker processes
"""

import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.checks import check_count, check_name
from experiments.data import prepared
from experiments.data.arrays import Split

# Imported where they are used: Grain takes a while, and bare machines lack both.
if TYPE_CHECKING:
    import grain
    from PIL import Image

# Of ImageNet's training images, on the scale of bytes, red, green, blue:
# https://github.com/pytorch/vision/blob/main/references/classification/presets.py
MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Stream:
    """A data set on disk, read as batches of images of one size, in numpy arrays.

    With more than one process each reads a part of every batch, that of its
    `process_index`; put one after the other, the parts are the batch that one process
    would read. `num_workers` processes read ahead for it; 0 is a thread of this one.
    They import the main module, which must therefore guard its main program with
    ``if __name__ == "__main__"``. A ``batch_size`` is that of all processes together.
    """

    name: str
    image_size: int
    num_classes: int
    sizes: Mapping[str, int]
    """The number of images in each of "train", "validation" and "test"."""
    mean: np.ndarray = dataclasses.field(repr=False)  # [3], float32, for `standardise`
    deviation: np.ndarray = dataclasses.field(repr=False)  # [3], float32
    _records: Mapping[str, "_Records"] = dataclasses.field(repr=False)

    @property
    def num_train(self) -> int:
        """The number of training images."""
        return self.sizes["train"]

    def train_batches(
        self,
        *,
        seed: int,
        batch_size: int,
        first_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
    ) -> "grain.DatasetIterator[Split]":
        """The training images in random order, randomly cropped and flipped, endlessly.

        Each epoch visits every image once, in an order of its own; the epochs follow
        each other without a gap, so that a batch can hold the end of one and the
        beginning of the next. Everything random depends on the seed and the place in
        this sequence only: the batch of a step is the same for all numbers of processes
        and workers, and wherever the iterator began, by leaving out `first_step`
        batches.

        Returns:
            An iterator of images, uint8 [batch_size / process_count, S, S, 3], and
            labels, int32. ``close()`` ends the workers, and so does dropping the
            iterator.

        Raises:
            ValueError: for numbers that do not fit each other, or, from the iterator,
                for an image that cannot be decoded.
        """
        import grain

        part_size = _part_size(batch_size, process_index, process_count, num_workers)
        if batch_size > self.num_train:
            raise ValueError(
                f"batch_size must be at most the {self.num_train} training images, "
                f"got {batch_size}."
            )
        check_count("seed", seed, least=0)
        check_count("first_step", first_step, least=0)
        batches = (
            grain.MapDataset.range(self.num_train)
            .seed(seed)
            .shuffle()
            .repeat()
            # After `repeat`: each visit of an image has random numbers of its own.
            .random_map(_TrainImage(self._records["train"], self.image_size))
            .batch(part_size, drop_remainder=True)
        )
        mine = batches[first_step * process_count + process_index :: process_count]
        return _read_ahead(mine, num_workers)

    def evaluation_batches(
        self,
        split: str,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
    ) -> Iterator[tuple[Split, np.ndarray]]:
        """All images of a split once and in order, scaled and cropped to the centre.

        The shorter side becomes 256/224 of the image size, of which the central square
        is taken.

        Returns:
            An iterator of images and labels as in `train_batches`, each with a mask,
            bool [batch_size / process_count], which is false for the black images that
            fill up the last batch. All processes get the same number of batches.

        Raises:
            ValueError: as `train_batches`, or for an unknown split.
        """
        import grain

        part_size = _part_size(batch_size, process_index, process_count, num_workers)
        check_name("split", split, self._records)
        num_batches = -(-self.sizes[split] // batch_size)
        batches = (
            grain.MapDataset.range(num_batches * batch_size)
            .map(_EvaluationImage(self._records[split], self.image_size))
            .batch(part_size, drop_remainder=True)
        )
        return _read_ahead(batches[process_index::process_count], num_workers)


def stream(name: str, image_size: int, data_dir: str | None = None) -> Stream:
    """Opens a data set of images of any size.

    Names, places, errors and validation images are those of `experiments.data.load`: of
    ImageNet, whose own validation images are the test set here, the last 10,000
    training images are for validation. The images must be files (JPEG or PNG).
    """
    check_count("image_size", image_size)
    builder = prepared.find(name, data_dir)
    if not prepared.has_files(builder):
        raise ValueError(
            f"the images of data set {name!r} are numbers and not files, which are not "
            "streamed; experiments.data.load reads them."
        )
    with prepared.readable(builder.info.full_name, builder.data_path):
        records = {
            part: _Records(name, span, prepared.records(builder, span.split))
            for part, span in prepared.spans(builder).items()
        }
    return Stream(
        name=name,
        image_size=image_size,
        num_classes=builder.info.features["label"].num_classes,
        sizes={part: x.span.stop - x.span.first for part, x in records.items()},
        mean=np.array(MEAN, np.float32),
        deviation=np.array(DEVIATION, np.float32),
        _records=records,
    )


@dataclasses.dataclass(frozen=True)
class _Records:
    """Some records of a split on disk."""

    name: str
    span: prepared.Span
    source: Any

    def read(self, position: int) -> tuple["Image.Image", np.int32]:
        """Decodes an image, as RGB, and gives its label."""
        index = self.span.first + position
        example = self.source[index]
        where = f"data set {self.name!r}, split {self.span.split!r}, record {index}"
        image = prepared.decode(example["image"], lambda x: x.convert("RGB"), where)
        return image, np.int32(example["label"])


@dataclasses.dataclass(frozen=True)
class _TrainImage:
    """Reads an image at a position, and crops and flips it at random."""

    records: _Records
    image_size: int

    def __call__(self, position: int, rng: np.random.Generator) -> Split:
        from PIL import Image

        image, label = self.records.read(position)
        size = (self.image_size, self.image_size)
        box = _random_box(rng, *image.size)
        image = image.resize(size, Image.Resampling.BICUBIC, box=box)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Split(np.asarray(image), label)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class _EvaluationImage:
    """Reads an image at a position and takes its centre; nothing is beyond the end."""

    records: _Records
    image_size: int

    def __call__(self, position: int) -> tuple[Split, np.bool]:
        span = self.records.span
        is_real = np.bool(position < span.stop - span.first)
        pixels = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        label = np.int32(0)
        if is_real:
            image, label = self.records.read(position)
            pixels = np.asarray(_centre(image, self.image_size))
        return Split(pixels, label), is_real  # pyright: ignore[reportArgumentType]


def _random_box(
    rng: np.random.Generator, width: int, height: int
) -> tuple[int, int, int, int]:
    """A random part of an image: left, upper, right and lower side.

    Szegedy et al. 2015, section 6 (https://arxiv.org/abs/1409.4842): of 8% to 100% of
    the area and an aspect ratio of 3/4 to 4/3, here uniform in its logarithm, so that
    high and wide are alike.
    """
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_AREA)
        aspect = math.exp(rng.uniform(*np.log(_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w + 1))
            upper = int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    # A very high or wide image: the middle, as much as the aspect ratio allows.
    w = max(1, min(width, round(height * _ASPECT[1])))
    h = max(1, min(height, round(width / _ASPECT[0])))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _centre(image: "Image.Image", size: int) -> "Image.Image":
    """The central square of an image whose shorter side is made 256/224 of `size`.

    Krizhevsky et al. 2012, section 2, with the sizes of He et al. 2016, section 3.4
    (https://arxiv.org/abs/1512.03385).
    """
    from PIL import Image

    shorter = max(size, round(size * 256 / 224))
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(side * scale)) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    left, upper = (width - size) // 2, (height - size) // 2
    return scaled.crop((left, upper, left + size, upper + size))


def _part_size(
    batch_size: int, process_index: int, process_count: int, num_workers: int
) -> int:
    """The number of images of a batch that each process reads."""
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be from 0 to {process_count - 1} with {process_count} "
            f"processes, got {process_index}."
        )
    check_count("batch_size", batch_size)
    if batch_size % process_count:
        raise ValueError(
            f"batch_size must be a multiple of the {process_count} processes, got "
            f"{batch_size}."
        )
    check_count("num_workers", num_workers, least=0)
    return batch_size // process_count


def _read_ahead(batches: Any, num_workers: int) -> Any:
    import grain
    from absl import flags

    # Few: what is counted are whole batches.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    dataset = batches.to_iter_dataset(options)
    if not num_workers:
        return iter(dataset)
    if not flags.FLAGS.is_parsed():
        # Grain's workers set flags, also where no program has parsed any.
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=num_workers)
    return iter(dataset.mp_prefetch(options, worker_init_fn=_leave_with_parent))


def _leave_with_parent(worker_index: int, worker_count: int) -> None:
    """Ends this worker when the process that it reads for is gone, and not before.

    A process that is killed cannot end its workers, and Grain's wait for it for ever.
    Ctrl-C in a terminal, and schedulers, signal to workers as well: these go on for as
    long as the process, which may want to stop in its own time.
    """
    del worker_index, worker_count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
