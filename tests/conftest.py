"""Settings of all tests: strict arithmetic, short compilations, eight devices."""

import os
import shutil
import tempfile

# Before JAX starts: eight host devices, so that sharding is tested anywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# A core is a test's own: threads of products would wait for those of its neighbour.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_multi_thread_eigen=false {os.environ.get('XLA_FLAGS', '')}"
)

import jax
import matplotlib as mpl
import pytest

from lars import data as datasets

mpl.use("agg")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    """What tests of a process compile alike is compiled once.

    In a place of each process alone: JAX writes there without a lock, and another one
    could read half an entry.
    """
    place = tempfile.mkdtemp(prefix="lars-compiled-")
    config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", place)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The embedded data, prepared from scratch in a place of the tests' own."""
    return datasets.load("digits", str(tmp_path_factory.mktemp("tfds")))


@pytest.fixture(scope="session")
def photos_dir(tmp_path_factory):
    """Where a few dozen JPEG images are, as tensorflow-datasets writes them."""
    from tests.photos import Photos

    place = str(tmp_path_factory.mktemp("photos"))
    Photos(data_dir=place, file_format="array_record").download_and_prepare()
    return place
