"""Data sets that tensorflow-datasets (TFDS) has prepared on disk, found by name.

Nothing is downloaded here: TFDS needs TensorFlow for that, and without a network tries
for minutes. Where a set is missing, an error says how to prepare it.
"""

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from experiments.data import text

if TYPE_CHECKING:
    from PIL import Image

# tensorflow_datasets is imported where it is used: it takes a while. So is PIL, which
# bare machines lack.

_NAME = re.compile(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?")  # name, config and version
_MAX_HELD_OUT = 10_000

T = TypeVar("T")


class Span(NamedTuple):
    """The records of a split on disk from `first` up to but without `stop`."""

    split: str
    first: int
    stop: int


def find(name: str, data_dir: str | os.PathLike | None) -> Any:
    """Finds a prepared data set of images and labels, of any origin.

    The embedded digits are prepared if they are not yet.

    Args:
        name: the name in TFDS, with ``/config`` and ``:version`` if wanted, or that of
            a folder with a prepared set of one's own. Without a version, the latest
            that is on disk.
        data_dir: where prepared data is, as in `experiments.data.load`.

    Returns:
        A `tfds.core.DatasetBuilder`, whose examples have "image" and "label".
    """
    from tensorflow_datasets.core import file_adapters, read_only_builder, registered

    if name == "digits":
        return _prepared_digits(data_dir)
    place = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    try:
        if not _NAME.fullmatch(name):
            raise registered.DatasetNotFoundError
        with readable(name, Path(place) / name):
            builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except registered.DatasetNotFoundError:
        raise _not_found(name, data_dir, place) from None

    formats = builder.info.available_file_formats()
    if file_adapters.FileFormat.ARRAY_RECORD not in formats:
        raise ValueError(
            f"data set {name!r} in {builder.data_path} is in the format "
            f"{', '.join(sorted(x.value for x in formats)) or 'unknown'}, and only "
            "array_record can be read. Move that folder away and prepare the set again "
            f"(what was downloaded is still there): {_how_to_prepare(name, data_dir)}"
        )
    _check_features(name, builder.info.features)
    return builder


def records(builder: Any, split: str) -> Any:
    """The examples of a split, by position; images that are files stay undecoded."""
    import tensorflow_datasets as tfds

    undecoded = {"image": tfds.decode.SkipDecoding()} if has_files(builder) else None
    return builder.as_data_source(split, decoders=undecoded, file_format="array_record")


def has_files(builder: Any) -> bool:
    """Whether images are PNG or JPEG files, and not arrays of numbers."""
    import tensorflow_datasets as tfds

    return isinstance(builder.info.features["image"], tfds.features.Image)


def decode(file: bytes, read: Callable[["Image.Image"], T], where: str) -> T:
    """Reads an image; a ValueError says where it is if it cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file)) as image:
            return read(image)
    except Exception as error:  # Pillow raises many
        raise ValueError(f"{where}: the image cannot be decoded ({error}).") from error


@contextlib.contextmanager
def readable(name: str, folder: str | os.PathLike) -> Iterator[None]:
    """Makes one error, a ValueError, of those that readers have for damaged files."""
    from tensorflow_datasets.core import registered

    try:
        yield
    except (ValueError, OSError, registered.DatasetNotFoundError):
        raise  # these say what is wrong
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"data set {name!r} in {folder} is damaged ({message}); delete that folder "
            f"and prepare the set again{_again(name)}"
        ) from error


def _again(name: str) -> str:
    if name.split("/")[0] == "digits":
        return ", by the same command."
    return f": {_how_to_prepare(name, None)}"


def spans(builder: Any) -> dict[str, Span]:
    """Divides a data set into train, validation and test, which share no image.

    A set that has all three keeps them. Otherwise its test split, or if it has none
    with labels its validation split (ImageNet), is the test set, and the last tenth of
    its training split, of at most 10,000 images, the validation set. TFDS shuffles
    when it prepares, in an order that the version of the set fixes, so that this tenth
    is a random one and everywhere the same.

    """
    sizes = {x: info.num_examples for x, info in builder.info.splits.items()}
    if not sizes:
        raise ValueError(
            f"data set {builder.info.full_name!r} in {builder.data_path} is damaged "
            "(it has no splits); delete that folder and prepare the set again"
            f"{_again(builder.info.full_name)}"
        )
    # The label of ImageNet's test images, which nobody has, is -1.
    if sizes.get("test") and records(builder, "test")[0]["label"] < 0:
        del sizes["test"]
    if "train" not in sizes or not {"validation", "test"} & sizes.keys():
        raise ValueError(
            f"data set {builder.info.full_name!r} needs a train split, and a test or a "
            f"validation split with labels; it has {', '.join(sizes)}."
        )
    if {"validation", "test"} <= sizes.keys():
        return {x: Span(x, 0, sizes[x]) for x in ("train", "validation", "test")}
    reported = "test" if "test" in sizes else "validation"
    count = sizes["train"]
    first_held_out = count - min(-(-count // 10), _MAX_HELD_OUT)
    return {
        "train": Span("train", 0, first_held_out),
        "validation": Span("train", first_held_out, count),
        "test": Span(reported, 0, sizes[reported]),
    }


def _prepared_digits(data_dir: str | os.PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    from experiments.data.digits import Digits

    place = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    try:
        with readable("digits", Path(place) / "digits"):
            builder = Digits(data_dir=data_dir, file_format="array_record")
            if not builder.is_prepared():
                print("Preparing the digits (once) ...", file=sys.stderr)
                tfds.disable_progress_bar()
                with contextlib.redirect_stdout(io.StringIO()):
                    builder.download_and_prepare()
    except OSError as error:
        raise OSError(
            f"data set 'digits' cannot be prepared in {place} ({error}); set "
            "TFDS_DATA_DIR to a folder that can be written."
        ) from error
    return builder


def _check_features(name: str, features: Any) -> None:
    import tensorflow_datasets as tfds

    known = dict(features.items()) if hasattr(features, "items") else {"": features}
    image: Any = known.get("image")
    label: Any = known.get("label")
    if isinstance(image, tfds.features.Image):
        is_image = image.np_dtype == "uint8"
    else:
        is_image = type(image) is tfds.features.Tensor
    if not (is_image and isinstance(label, tfds.features.ClassLabel)):
        has = [f"{x}: {type(f).__name__}" for x, f in sorted(known.items())]
        raise ValueError(
            f"data set {name!r} is not one of images and their classes: it needs the "
            "features image (Image of uint8, or Tensor) and label (ClassLabel), and "
            f"has {'; '.join(has)}."
        )


def _not_found(
    name: str, data_dir: str | os.PathLike | None, place: str | os.PathLike
) -> Exception:
    import tensorflow_datasets as tfds

    known = set(tfds.list_builders(with_community_datasets=False))
    bare = re.split("[/:]", name)[0]
    if bare in known and _NAME.fullmatch(name):
        return FileNotFoundError(
            f"data set {name!r} is not prepared in {place}. Prepare it once, where "
            f"there is a network: {_how_to_prepare(name, data_dir)} "
            f"(https://www.tensorflow.org/datasets/catalog/{bare} says if there are "
            "files to download by hand before)"
        )
    with contextlib.suppress(OSError):
        folders = Path(place).expanduser().iterdir()
        known |= {folder.name for folder in folders if folder.is_dir()}
    close = difflib.get_close_matches(
        bare, sorted((known | {"digits", text.NAME}) - {bare})
    )
    meant = f"; did you mean {' or '.join(close)}?" if close else "."
    return ValueError(
        f"there is no data set {name!r} in tensorflow-datasets, nor prepared in "
        f"{place}{meant}"
    )


def _how_to_prepare(name: str, data_dir: str | os.PathLike | None) -> str:
    where = f", data_dir={str(data_dir)!r}" if data_dir else ""
    return (
        'pip install tensorflow-cpu && python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}{where}, file_format='array_record')"
        '.download_and_prepare()"'
    )
