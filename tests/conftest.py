"""Settings of all tests: strict arithmetic, short compilations, eight devices."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

# Before JAX starts: eight host devices, so that sharding is tested anywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# A core is a test's own: threads of products would wait for those of its neighbour.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Compilations take most of the time, those of the commands that tests start included.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_cpu_multi_thread_eigen=false",
        # These save a fifth of the compilation. Other versions may not know them.
        *(
            (
                "--xla_cpu_use_fusion_emitters=false",
                "--xla_cpu_parallel_codegen_split_count=1",
            )
            if importlib.metadata.version("jaxlib") == "0.10.2"
            else ()
        ),
        os.environ.get("XLA_FLAGS", ""),
    )
)

# What tests compile alike is compiled once, in whichever process needs it first: the
# other workers and the commands inherit the place. JAX writes there without a lock; who
# reads half an entry, or one of a killed process, is told so and compiles for itself:
# never in a place that the user has chosen, where such entries would stay.
if "lars-compiled-" not in os.environ.get("JAX_COMPILATION_CACHE_DIR", ""):
    COMPILED = tempfile.mkdtemp(prefix="lars-compiled-")
    atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import matplotlib as mpl
import pytest
import threadpoolctl

from experiments import data as datasets

mpl.use("agg")
threadpoolctl.threadpool_limits(1, "blas")  # a plugin may have loaded NumPy before
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The embedded data, prepared from scratch in a place of the tests' own."""
    return datasets.load("digits", str(tmp_path_factory.mktemp("tfds")))


@pytest.fixture(scope="session")
def photos_dir(tmp_path_factory):
    """Where a few dozen JPEG images are, as tensorflow-datasets writes them."""
    from tests.experiments.data.photos import Photos

    place = str(tmp_path_factory.mktemp("photos"))
    Photos(data_dir=place, file_format="array_record").download_and_prepare()
    return place
