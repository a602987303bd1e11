"""Decoded images kept on disk: decoding 60,000 PNGs takes long, reading them does not.

    $LARS_CACHE_DIR/fashion_mnist/3.0.1/train-60000-1f0c….npz     (~/.cache/lars/arrays)

The files can be deleted at any time.
"""

import hashlib
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Arrays(NamedTuple):
    """The examples of a split."""

    images: np.ndarray  # [N, H, W, C]
    labels: np.ndarray  # [N], int32


def cached(builder: Any, split: str, decode: Callable[[], Arrays]) -> Arrays:
    """Reads the images of a split from the cache, or decodes and keeps them.

    A damaged file is made again, and where nothing can be written nothing is kept;
    stderr says so.

    What identifies the prepared set of `builder` on disk identifies the arrays: its
    description, and the sizes and times of its files. Images are uint8.
    """
    place = os.environ.get("LARS_CACHE_DIR") or "~/.cache/lars/arrays"
    folder = Path(os.path.expanduser(place)) / builder.info.full_name
    file = folder / _file_name(builder, split)
    count = builder.info.splits[split].num_examples
    try:
        return _read(file, (count, *builder.info.features["image"].shape))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # a flipped bit can become any error of zipfile or numpy
        _say(f"{file} is damaged ({error!r}); it is made again.")
    arrays = decode()
    try:
        _write(file, arrays)
    except OSError as error:
        _say(
            f"decoded images cannot be kept in {file.parent} ({error.strerror}); set "
            "LARS_CACHE_DIR to a folder that can be written."
        )
    return arrays


def _file_name(builder: Any, split: str) -> str:
    info = builder.info.splits[split]
    folder = Path(builder.data_path)
    stats = [(path.name, path.stat()) for path in map(Path, info.filepaths)]
    identity = repr(
        [
            (folder / "dataset_info.json").read_text(),
            (folder / "features.json").read_text(),
            *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats),
        ]
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return f"{split}-{info.num_examples}-{digest}.npz"


def _read(file: Path, shape: tuple[int, ...]) -> Arrays:
    with file.open("rb") as stream, np.load(stream) as archive:
        # Reading an array to its end compares its CRC-32 with that in the archive. The
        # array's own header decides where the end is, so that is compared here.
        arrays = Arrays(archive["images"], archive["labels"])
    if (arrays.images.shape, arrays.images.dtype) != (shape, np.uint8):
        raise ValueError(f"images of {arrays.images.shape}, {arrays.images.dtype}")
    if (arrays.labels.shape, arrays.labels.dtype) != (shape[:1], np.int32):
        raise ValueError(f"labels of {arrays.labels.shape}, {arrays.labels.dtype}")
    return arrays


def _write(file: Path, arrays: Arrays) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as stream:
            np.savez(stream, **arrays._asdict())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr)
