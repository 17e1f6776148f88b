"""The device mesh, how arrays are sharded over it, and gradients summed over it.

The batch is always sharded by rows.  By default parameters are replicated, which is enough for every shared ALBERT (12 to 223 M
parameters); `MeshConfig.sharding` is for large unshared networks.  `shard_axis` chooses the sharded axis of an array.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from albert_jax.config import InputError, check_fields, choice, first_line
from albert_jax.training.paths import Path, path_names
from albert_jax.training.stacking import stacked_sharding

DATA = "data"
"""Name of the mesh axis."""

SHARDINGS: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("opt_state",),
    "parameters": ("opt_state", "params"),
}
"""Name -> the parts of the training state that are sharded over the devices."""


@dataclass(frozen=True)
class MeshConfig:
    """The devices of a run, and how its state is sharded over them."""

    data: int = 0
    """Number of devices that the batch is sharded over.  0: all devices."""
    sharding: str = choice("none", SHARDINGS)
    """optimizer: shard the optimizer state (ZeRO-1); parameters: also the parameters (FSDP), for large unshared networks."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.data < 0:
            raise InputError(f"data must be at least 0, got {self.data}")

    def check_remat(self, remat: str) -> None:
        """Raise `InputError` if the backward pass would save the all-gathered parameters of every layer."""
        if "params" in SHARDINGS[self.sharding] and remat == "none":
            raise InputError(
                f"mesh.sharding {self.sharding!r} does not work with model.remat 'none', which saves the gathered parameters "
                "of all layers; set model.remat to elementwise, dots or full"
            )


def make_mesh(platform: str, num_devices: int = 0) -> Mesh:
    """Make a mesh of `num_devices` devices (0: all) along the axis `data`.

    Devices are ordered by process, so that each process has consecutive rows of a batch.

    Args:
      platform: "cpu", "gpu" or "tpu"; "any" accepts the platform that JAX chooses.
      num_devices: with several processes, 0 or the number of all devices.

    Raises:
      InputError: JAX finds a different platform or too few devices.
    """
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        jax_platforms = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(
            f"train.platform {platform!r}: JAX cannot start a device ({first_line(error)}); JAX_PLATFORMS={jax_platforms}"
        ) from None
    if platform not in ("any", backend):
        raise InputError(
            f"train.platform is {platform!r}, but JAX found {backend!r}; install the jax plugin for {platform} or pass "
            f"--train.platform {backend}"
        )
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if num_devices > len(devices):
        raise InputError(f"mesh.data {num_devices}: JAX found {len(devices)} devices; --mesh.data 0 takes all")
    if num_devices not in (0, len(devices)) and jax.process_count() > 1:
        raise InputError(
            f"mesh.data {num_devices}: several processes always use all their {len(devices)} devices; omit the option"
        )
    # Auto axes: flax's embedding lookup does not work under explicit ones.
    return Mesh(np.array(devices[: num_devices or None]), (DATA,), axis_types=(AxisType.Auto,))


def shard_axis(shape: tuple[int, ...], stacked: bool, num_devices: int) -> int | None:
    """The axis of an array that is sharded, or None if it is replicated.

    Matrices are sharded along the larger of their two axes that the number of devices divides.  Vectors are replicated.

    Args:
      shape: of the global array.
      stacked: whether the first axis is that of parameter sets.
      num_devices: number of devices in the mesh.
    """
    if num_devices == 1 or len(shape) - stacked < 2:
        return None
    divisible = [axis for axis in (len(shape) - 2, len(shape) - 1) if shape[axis] % num_devices == 0]
    return max(divisible, key=lambda axis: shape[axis], default=None)


@dataclass(frozen=True)
class Layout:
    """A mesh, and how the training state is sharded over it."""

    mesh: Mesh
    sharding: str = "none"
    """A key of `SHARDINGS`."""
    stacked: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)
    """Path -> shape [G, ...] of the parameters that stack several sets.  The model gathers them itself, one set at a time."""

    def axis(self, part: str, path: Path, shape: tuple[int, ...]) -> int | None:
        """The sharded axis of an array in a part of the state ("params", "opt_state" or "step")."""
        return shard_axis(shape, path in self.stacked, self.mesh.size) if part in SHARDINGS[self.sharding] else None

    def specs(self, part: str, tree: Any) -> Any:
        """The partition spec of each array in a part of the state."""

        def spec(path: Any, leaf: Any) -> PartitionSpec:
            axis = self.axis(part, path_names(path), leaf.shape)
            return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, DATA)

        return jax.tree_util.tree_map_with_path(spec, tree)

    def placed(self, part: str, tree: Any) -> Any:
        """The shape and sharding of each array in a part of the state."""
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)),
            tree,
            self.specs(part, tree),
        )

    @property
    def gather_set(self) -> Callable[..., Any] | None:
        """The function that the model calls on one parameter set inside `summed_gradients`: `gather_set(params, *path)`.

        It all-gathers the set.  None if parameters are replicated.
        """
        return self._gather_set if "params" in SHARDINGS[self.sharding] else None

    def _gather_set(self, params: Any, *prefix: str) -> Any:
        def gather(path: Any, leaf: Array) -> Array:
            full_path = prefix + path_names(path)
            axis = self.axis("params", full_path, self.stacked[full_path])
            # `axis` is that of the stacked array; one set does not have the first axis.
            return leaf if axis is None else jax.lax.all_gather(leaf, DATA, axis=axis - 1, tiled=True)

        return jax.tree_util.tree_map_with_path(gather, params)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis is sharded."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def gathered(params: Any, mesh: Mesh) -> Any:
    """All-gather parameters inside jit, for a model that is not aware of devices.

    Otherwise XLA all-gathers the batch, and every device computes every row.
    """
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def check_batch_size(
    field: str, batch_size: int, gradient_accumulation: int, num_devices: int, process_count: int | None = None
) -> None:
    """Check that a batch divides evenly over devices and micro-batches.

    Raises:
      InputError: gives the numbers, and the nearest batch sizes that fit.
    """
    parts = num_devices * gradient_accumulation
    below = max(batch_size // parts, 1) * parts
    if batch_size % parts != 0:
        raise InputError(
            f"{field} {batch_size} is not divisible by {num_devices} devices ({process_count or jax.process_count()} "
            f"processes) x train.gradient_accumulation {gradient_accumulation}; use {below} or {below + parts}"
        )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], num_seeds: int = 1) -> dict[str, Array]:
    """Make global arrays, sharded by rows, from the rows of this process."""
    sharding = stacked_sharding(by_rows(mesh), num_seeds)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def device_values(mesh: Mesh, value: int) -> Array:
    """Make an int32 array [devices] in which the entries of this process's devices are `value`."""
    return put_batch(mesh, {"": np.full(len(mesh.local_devices), value, np.int32)})[""]


def local_rows(batch: dict[str, Array]) -> dict[str, np.ndarray]:
    """The rows of a batch that are on this process's devices."""
    return {
        name: np.concatenate(
            [shard.data for shard in sorted(rows.addressable_shards, key=lambda shard: shard.index[0].start or 0)]
        )
        for name, rows in batch.items()
    }


def prefetch(
    mesh: Mesh, batches: Iterator[dict[str, np.ndarray]], ahead: int = 2, num_seeds: int = 1
) -> Iterator[dict[str, Array]]:
    """Transfer batches to the devices, `ahead` batches before they are used."""
    queue: list[dict[str, Array]] = []
    for batch in batches:
        queue.append(put_batch(mesh, batch, num_seeds))
        if len(queue) > ahead:
            yield queue.pop(0)
    yield from queue


def summed_gradients(loss_fn: Callable[..., Any], layout: Layout, micro_batches: int) -> Callable[..., Any]:
    """Return `(params, examples, *frozen) -> (gradients, loss, metrics)`, each summed over micro-batches and then, once, over devices.

    Parameters are marked as varying over the mesh before the loops.  Otherwise XLA puts an all-reduce of the shared layer's
    gradient into each of the L iterations of the backward scan.

    If the optimizer state is sharded, each device gets only its shard of the summed gradients.  Sharded parameters are
    gathered before the loops, except those in `layout.stacked`: the model gathers one set at a time, and the transpose of
    that gather sums the gradient.  The gathers are explicit, because what XLA makes of annotations changes with its version,
    and it would reduce the gradient of a shared layer L times.

    Args:
      loss_fn: `(params, examples, *frozen) -> (loss, metrics)`, sums over rows.  Every device has all of `frozen`.
      layout: the mesh and the shardings.
      micro_batches: number of parts that the rows of a device are split into.
    """

    def gradients(params: Any, examples: Any, *frozen: Any) -> Any:
        axes = {
            (path := path_names(key)): tuple(layout.axis(part, path, leaf.shape) for part in ("params", "opt_state"))
            for key, leaf in jax.tree_util.tree_leaves_with_path(params)
        }

        def prepare(key: Any, leaf: Array) -> Array:
            axis, _ = axes[path := path_names(key)]
            if axis is None:
                return varying(leaf)
            return leaf if path in layout.stacked else jax.lax.all_gather(leaf, DATA, axis=axis, tiled=True)

        def sum_over_devices(key: Any, grad: Array) -> Array:
            params_axis, opt_state_axis = axes[path := path_names(key)]
            if params_axis is not None and path in layout.stacked:
                return grad
            if opt_state_axis is None:
                return jax.lax.psum(grad, DATA)
            return jax.lax.psum_scatter(grad, DATA, scatter_dimension=opt_state_axis, tiled=True)

        def on_one_device(params: Any, examples: Any, *frozen: Any) -> Any:
            params = jax.tree_util.tree_map_with_path(prepare, params)

            def add(total: Any, rows: Any) -> tuple[Any, None]:
                (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows, *frozen)
                return jax.tree.map(jnp.add, total, (grads, loss, metrics)), None

            micro = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), examples)
            shapes = jax.eval_shape(loss_fn, params, jax.tree.map(lambda x: x[0], micro), *frozen)
            zeros = varying(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, *shapes)))
            (grads, loss, metrics), _ = jax.lax.scan(add, zeros, micro)
            return jax.tree_util.tree_map_with_path(sum_over_devices, grads), *jax.lax.psum((loss, metrics), DATA)

        return jax.shard_map(
            on_one_device,
            mesh=layout.mesh,
            in_specs=(layout.specs("params", params), PartitionSpec(DATA), *[PartitionSpec()] * len(frozen)),
            out_specs=(layout.specs("opt_state", params), PartitionSpec(), PartitionSpec()),
        )(params, examples, *frozen)

    def varying(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.pcast(x, DATA, to="varying"), tree)

    return gradients
