"""Where the batches of a single run come from, on the devices of a mesh."""

import collections
import contextlib
import itertools
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from experiments import data as datasets
from experiments.data import Data, Split
from experiments.training.sharding import put, put_parts, replicated, split
from experiments.training.training import batch_positions

Batches = Generator[Any, None, None]


class Part(NamedTuple):
    """Some images of a split, to be evaluated."""

    split: Split
    positions: jax.Array | None  # [B]: which images of the split; None is all
    mask: jax.Array  # [B], bool: false where an image only fills up the part


class Source:
    """Batches by their number: each is the same however often and wherever made."""

    data: Data  # an argument of the compiled functions
    num_train: int
    num_classes: int
    is_in_memory = False  # whether `data` has all images, or shows only their shape
    evaluated = ("validation", "test")  # after the last step

    def batches(self, seed: int, batch_size: int, steps: range) -> Batches:
        """Yields the batches of as many steps at a time as the range strides.

        Where images are in memory it yields the numbers [steps] of the steps, and else
        images and labels [steps, B, ...]; at the end of the range for fewer steps.
        Closing it ends the processes that read ahead.
        """
        raise NotImplementedError

    def batch(self, seed: int, batch_size: int, step: int) -> jax.Array | Split:
        """What one step is made on: positions [B] in memory, or images and labels."""
        (batch,) = self.batches(seed, batch_size, range(step, step + 1))
        return jax.tree.map(lambda x: x[0], batch)

    def parts(self, name: str, batch_size: int) -> Iterator[Part]:
        """All of a split in order, in equal parts, the last one filled up."""
        raise NotImplementedError


class InMemory(Source):
    """A whole data set on every device; batches are positions in it."""

    is_in_memory = True
    evaluated = ("train", "validation", "test")

    def __init__(self, name: str, mesh: Mesh) -> None:
        """Loads a data set by its name, as `experiments.data.load` does."""
        loaded = datasets.load(name)
        self.num_train = len(loaded.train.labels)
        self.num_classes = loaded.num_classes
        self.data = put(loaded, replicated(mesh))
        self._mesh = mesh

    def batches(self, seed: int, batch_size: int, steps: range) -> Batches:
        """The numbers of the steps: which images these see is decided on the device."""
        for first in steps:
            last = min(first + steps.step, steps.stop)
            yield put(np.arange(first, last, dtype=np.int32), replicated(self._mesh))

    def batch(self, seed: int, batch_size: int, step: int) -> jax.Array:
        """The positions [B] of a step's images in the training set."""
        numbers = jnp.int32(seed), jnp.int32(step)
        return batch_positions(*numbers, 1, self.num_train, batch_size)[0]

    def parts(self, name: str, batch_size: int) -> Iterator[Part]:
        """Positions of images."""
        images, sharding = getattr(self.data, name), split(self._mesh)
        count = len(images.labels)
        for first in range(0, count, batch_size):
            positions = np.arange(first, first + batch_size, dtype=np.int32)
            within = put(np.minimum(positions, count - 1), sharding)
            yield Part(images, within, put(positions < count, sharding))


class Streamed(Source):
    """A data set that each host reads its own part of while the devices compute."""

    def __init__(
        self, name: str, mesh: Mesh, *, image_size: int, num_workers: int
    ) -> None:
        """Opens a data set by its name, as `experiments.data.stream` does."""
        self._stream = stream = datasets.stream(name, image_size)
        self.num_train, self.num_classes = stream.num_train, stream.num_classes
        self.data = _shapes(mesh, image_size, stream.mean, stream.deviation)
        self._mesh = mesh
        self._reader = {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "num_workers": num_workers,
        }

    def batches(self, seed: int, batch_size: int, steps: range) -> Batches:
        """The images and labels of each step, one batch ahead of the step."""
        assert steps.step == 1  # `experiments.training.plan` has seen to it
        reading = self._stream.train_batches(
            seed=seed, batch_size=batch_size, first_step=steps.start, **self._reader
        )
        sharding = split(self._mesh, axis=1)
        ahead: collections.deque[Split] = collections.deque()
        with contextlib.closing(reading):
            for batch in itertools.islice(reading, len(steps)):
                alone = jax.tree.map(lambda x: x[np.newaxis], batch)
                ahead.append(put_parts(alone, sharding))
                if len(ahead) > 1:
                    yield ahead.popleft()
            yield from ahead

    def parts(self, name: str, batch_size: int) -> Iterator[Part]:
        """Images and labels, without positions."""
        sharding = split(self._mesh)
        for images, mask in self._stream.evaluation_batches(
            name, batch_size, **self._reader
        ):
            yield Part(put_parts(images, sharding), None, put_parts(mask, sharding))


class Synthetic(Source):
    """One batch of random images, on the devices from the first step: to time steps."""

    num_train, num_classes = 1_281_167, 1000  # of ImageNet

    def __init__(self, mesh: Mesh, image_size: int) -> None:
        """Makes no image yet."""
        self.data = _shapes(mesh, image_size, np.full(3, 128.0), np.full(3, 64.0))
        self._mesh, self._image_size = mesh, image_size

    def batches(self, seed: int, batch_size: int, steps: range) -> Batches:
        """The same images and labels for every step."""
        images = self._images(seed, (1, batch_size), split(self._mesh, axis=1))
        for _ in steps:
            yield images

    def parts(self, name: str, batch_size: int) -> Iterator[Part]:
        """As many images as are evaluated at a time."""
        sharding = split(self._mesh)
        images = self._images(0, (batch_size,), sharding)
        yield Part(images, None, put(np.ones(batch_size, bool), sharding))

    def _images(
        self, seed: int, shape: tuple[int, ...], sharding: NamedSharding
    ) -> Split:
        def draw(key: jax.Array) -> Split:
            keys, size = jax.random.split(key), (self._image_size, self._image_size, 3)
            images = jax.random.bits(keys[0], (*shape, *size), jnp.uint8)
            return Split(images, jax.random.randint(keys[1], shape, 0, 1000))

        return jax.jit(draw, out_shardings=sharding)(jax.random.key(seed))


def _shapes(
    mesh: Mesh, image_size: int, mean: np.ndarray, deviation: np.ndarray
) -> Data:
    """The data of images that come with the batches: here is only their shape."""
    shape = Split(
        jnp.zeros((1, image_size, image_size, 3), jnp.uint8), jnp.zeros(1, jnp.int32)
    )
    statistics = (jnp.asarray(x, jnp.float32) for x in (mean, deviation))
    return put(Data(shape, shape, shape, *statistics), replicated(mesh))


def open_source(
    name: str, mesh: Mesh, *, image_size: int | None, num_workers: int
) -> Source:
    """The data set of a run: in memory, or streamed where a size of images is given.

    ``"synthetic"``, with a size, is random images.

    Raises:
        ValueError, OSError: as `experiments.data.load` and `experiments.data.stream`.
    """
    if image_size is None:
        return InMemory(name, mesh)
    if name == "synthetic":
        return Synthetic(mesh, image_size)
    return Streamed(name, mesh, image_size=image_size, num_workers=num_workers)
