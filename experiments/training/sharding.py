"""Where the arrays of a run are: one mesh of all devices of all hosts."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.checks import check_name

AXIS = "batch"
"""The mesh's only axis: batches of images, or of runs, are split along it, and with
FSDP parameters too."""

PLACEMENTS = ("replicated", "fsdp")


def device_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the given devices, or of all devices of all hosts."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """A part of one axis on every device."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, AXIS))


def shardings_of(tree: Any, mesh: Mesh, placement: str) -> Any:
    """Where each array of a state is.

    ``"replicated"``: on every device, as a whole; data parallelism. ``"fsdp"``: each
    array split among the devices along its longest axis that they divide, if there is
    one; XLA gathers the weights of a layer where it computes with them (fully sharded
    data parallelism; Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054). It
    goes by shapes, so that momentum lies where its parameter does.

    Args:
        tree: arrays, or their shapes from `jax.eval_shape`.
        mesh: the devices.
        placement: one of `PLACEMENTS`.
    """
    check_name("placement", placement, PLACEMENTS)
    if placement == "replicated":
        return jax.tree.map(lambda x: replicated(mesh), tree)
    return jax.tree.map(lambda x: NamedSharding(mesh, _fsdp_spec(x.shape, mesh)), tree)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Places arrays that every host has as a whole."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(x: Any) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(
            whole.shape, sharding, lambda index: whole[index]
        )

    return jax.tree.map(place, tree)


def fetch(tree: Any) -> Any:
    """The whole of arrays, wherever their parts are, as numpy arrays on every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def on_any_host(flag: bool) -> bool:
    """Whether a flag is true on one host at least. All hosts have to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def put_parts(tree: Any, sharding: NamedSharding) -> Any:
    """Joins the parts that the hosts have of arrays along the axis that is split."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def _fsdp_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    divisible = [axis for axis, n in enumerate(shape) if n and n % mesh.size == 0]
    # A vector is not worth the messages.
    if len(shape) < 2 or not divisible:
        return PartitionSpec()
    longest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, AXIS)
