"""Data sets by their name in tensorflow-datasets, read without TensorFlow.

`load` gives small sets as whole arrays, `stream` large ones batch by batch.
"""

from experiments.data.arrays import (
    Data as Data,
    Split as Split,
    standardise as standardise,
)
from experiments.data.loading import load as load
from experiments.data.streaming import Stream as Stream, stream as stream
