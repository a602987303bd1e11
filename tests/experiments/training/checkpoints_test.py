"""A checkpoint is restored to the bit on any devices, or refused if it is damaged."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.checkpoints import Checkpoints, digest
from experiments.training.sharding import device_mesh, put, replicated, shardings_of

# Orbax leaves the event loop of a restore that failed to the garbage collector, which
# complains of it in whatever test it comes to then; so it comes here.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()


def tree(step):
    numbers = np.random.default_rng(step)
    return {
        "params": {
            "kernel": numbers.standard_normal((16, 24)).astype(np.float32),
            "half": numbers.standard_normal(8).astype(jnp.bfloat16),
        },
        "step": np.int32(step),
        "flags": np.array([True, False, True]),
        "bytes": numbers.integers(0, 255, (8, 3), np.uint8),
        "nothing": None,
        "strange": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    }


def on(devices, step, placement="replicated"):
    mesh = device_mesh(jax.devices()[:devices])
    arrays = put(tree(step), replicated(mesh))
    return jax.tree.map(jax.device_put, arrays, shardings_of(arrays, mesh, placement))


def like(arrays):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays
    )


def assert_same_bits(actual, expected):
    def bits(x):
        return x.dtype, x.shape, np.asarray(x).tobytes()

    assert jax.tree.map(bits, actual) == jax.tree.map(bits, expected)


@pytest.mark.parametrize("here", [(1, "replicated"), (8, "fsdp")])
@pytest.mark.parametrize("there", [(1, "replicated"), (8, "fsdp"), (4, "replicated")])
def test_every_bit_returns_on_any_devices(tmp_path, here, there):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, on(here[0], 7, here[1]))
    with Checkpoints(tmp_path) as checkpoints:
        expected = on(there[0], 7, there[1])
        step, restored = checkpoints.restore_newest(like(expected))
    assert step == 7
    assert_same_bits(restored, expected)
    assert like(restored) == like(expected)


def test_what_is_saved_is_what_was_there_when_it_was_asked(tmp_path):
    increment = jax.jit(lambda x: jax.tree.map(lambda y: y + y, x), donate_argnums=0)
    arrays = put({"x": np.ones(1_000_000, np.float32)}, replicated(device_mesh()))
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(3):
            checkpoints.save(step, arrays)
            arrays = increment(arrays)
        _, restored = checkpoints.restore_newest(like(arrays))
    np.testing.assert_array_equal(restored["x"], 4.0)


def test_two_checkpoints_are_kept_and_none_is_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(like(on(1, 0))) is None
        for step in (10, 20, 30):
            checkpoints.save(step, on(1, step))
    steps = sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit())
    assert steps == ["20", "30"]


def files_of(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def truncate(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_checkpoint_is_never_restored(tmp_path, damage, capsys):
    whole = tmp_path / "whole"
    with Checkpoints(whole) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, on(1, step))
    noticed = 0
    files = [f for f in files_of(whole / "20") if (whole / "20" / f).stat().st_size]
    assert len(files) > 4
    for file in files:
        damaged = tmp_path / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        damage(damaged / "20" / file)
        with Checkpoints(damaged) as checkpoints:
            step, restored = checkpoints.restore_newest(like(on(1, 0)))
            # Some files hold nothing that the arrays depend on.
            assert_same_bits(restored, on(1, step))
            warning = capsys.readouterr().err
            assert (step == 10) == ("checkpoint of step 20" in warning)
            noticed += step == 10
            # The run goes on from there, over the damaged one.
            if step == 10:
                checkpoints.save(20, on(1, 20))
    assert noticed >= 2
    with Checkpoints(damaged) as checkpoints:
        assert checkpoints.restore_newest(like(on(1, 0)))[0] == 20


def test_a_checkpoint_of_something_else_is_not_touched(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, {"other": jnp.ones(3)})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="10:"):
        checkpoints.restore_newest(like(on(1, 0)))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(like({"other": jnp.ones(3)}))[0] == 10


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    arrays = on(1, 10)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, arrays)
        checkpoints.wait()
        manager = checkpoints._manager

        def full(*_, **__):
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore")

        for name, call in (
            ("save", lambda: checkpoints.save(20, arrays)),
            ("wait_until_finished", checkpoints.wait),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(manager, name, full)
                with pytest.raises(OSError, match=r"to /\S+ \(RES.*device\); make"):
                    call()
    # Leaving waits, and says so as well; but no error hides another.
    for error, expected in ((None, OSError), (SystemExit, OSError), (KeyError,) * 2):
        with (  # noqa: PT012
            monkeypatch.context() as patch,
            pytest.raises(expected),
            Checkpoints(tmp_path) as checkpoints,
        ):
            patch.setattr(checkpoints._manager, "wait_until_finished", full)
            if error:
                raise error
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(like(arrays))[0] == 10


def test_when_all_are_damaged_it_says_so(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, on(1, 10))
    for file in files_of(tmp_path / "10"):
        truncate(tmp_path / "10" / file)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="no ch"):
        checkpoints.restore_newest(like(on(1, 0)))


def test_the_digest_sees_every_bit_and_no_device():
    arrays = on(1, 3)
    expected = int(digest(arrays))
    assert int(digest(on(8, 3, "fsdp"))) == expected
    for name in ("bytes", "strange", "flags"):
        content = np.array(arrays[name])
        raw = content.view(np.uint8).reshape(-1)
        for bit in range(8 if name != "flags" else 1):
            for place in range(raw.size):
                raw[place] ^= 1 << bit
                assert int(digest({**arrays, name: jnp.asarray(content)})) != expected
                raw[place] ^= 1 << bit
    kernel = np.array(arrays["params"]["kernel"])
    kernel[[0, 1]] = kernel[[1, 0]]
    swapped = {**arrays["params"], "kernel": jnp.asarray(kernel)}
    assert int(digest({**arrays, "params": swapped})) != expected
