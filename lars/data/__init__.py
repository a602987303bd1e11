"""Data sets as whole arrays, read through tensorflow-datasets without TensorFlow."""

from lars.data.loading import (
    DATASETS as DATASETS,
    Data as Data,
    Split as Split,
    load as load,
)
