"""The embedded text: the language reference that comes with Python itself."""

import jax.numpy as jnp
import numpy as np

from experiments.data.arrays import Data, Split

NAME = "python_reference"

_WINDOW = 16  # characters that a network sees of the text
_PARTS = 12  # of each 12 windows in a row, one is for validation and one for the test


def load() -> Data:
    """About 460,000 characters, in windows that each predict their next characters.

    The help topics of Python (``pydoc_data.topics``), which are its language reference
    as plain text. Other versions of Python have slightly other texts. A window has 16
    characters, and its labels are the characters one further on: the last of them is
    the first of the next window. Windows do not overlap.

    Returns:
        Codes of characters as images, uint8 [N, 16, 1, 1], and as labels, int32
        [N, 16]. `experiments.data.standardise` leaves the codes as they are.
    """
    from pydoc_data import topics  # most of a second, if it has no bytecode

    text = "".join(topics.topics[name] for name in sorted(topics.topics))
    _, codes = np.unique(np.array(list(text)), return_inverse=True)
    count = (len(codes) - 1) // _WINDOW
    seen, next_ones = (
        codes[first : first + count * _WINDOW].reshape(count, _WINDOW)
        for first in (0, 1)
    )

    def split(parts: range) -> Split:
        rows = np.isin(np.arange(count) % _PARTS, parts)
        images = seen[rows][:, :, None, None]
        return Split(
            jnp.asarray(images, jnp.uint8), jnp.asarray(next_ones[rows], jnp.int32)
        )

    return Data(
        train=split(range(_PARTS - 2)),
        validation=split(range(_PARTS - 2, _PARTS - 1)),
        test=split(range(_PARTS - 1, _PARTS)),
        mean=jnp.zeros(1),
        deviation=jnp.ones(1),
    )
