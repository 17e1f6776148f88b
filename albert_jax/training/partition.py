"""Devices: the mesh, where arrays live on it, and gradients over it.  The one place that knows how many there are.

The batch is always cut by rows.  Plain data parallelism, parameters everywhere, is right for every shared ALBERT (12 to 223 M
parameters).  What is cut besides is for big unshared networks, and is decided by path and shape alone (`cut_axis`).
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from albert_jax.config import InputError, check_fields, require
from albert_jax.training.optim import decays, names

DATA = "data"

Path = tuple[str, ...]


@dataclass(frozen=True)
class MeshConfig:
    """The devices, and what of a run's state each of them holds."""

    data: int = 0
    """Devices that share the batch; 0: all there are."""
    sharding: str = "none"
    """What is cut over them: nothing; the optimiser's state (ZeRO-1); that and the parameters (FSDP), for big unshared networks."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.data >= 0, f"data must be at least 0, got {self.data}")
        require(self.sharding in SHARDINGS, f"sharding: one of {', '.join(SHARDINGS)}, got {self.sharding!r}")

    def check_remat(self, remat: str) -> None:
        """Refuses parameters that are cut where backward would keep the whole ones of every layer.

        Raises:
          InputError: as said.
        """
        kept = self.sharding == "parameters" and remat == "none"
        require(
            not kept,
            "mesh.sharding 'parameters' needs another model.remat than 'none', or all layers' would be kept whole",
        )


SHARDINGS: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("opt_state",),
    "parameters": ("opt_state", "params"),
}
"""Name -> the parts of the state that are cut."""

PEAK_TFLOPS = {
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "V100": 125,
    "L40S": 362,
    "L4": 121,
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v6": 918,
}
"""Dense bf16 (V100: fp16) peak of the data sheets, per JAX device, by what stands in its `device_kind`."""


def make_mesh(platform: str, devices: int = 0) -> Mesh:
    """A mesh of `devices` devices (0: all) along one axis, `data`.

    They stand in the order of their processes, so that each process owns one run of a batch's rows.

    Raises:
      InputError: `platform` ('cpu', 'gpu', 'tpu'; 'any' takes what is there) is not what JAX finds, or there are fewer devices.
    """
    try:
        found = jax.default_backend()
    except RuntimeError as error:  # JAX_PLATFORMS names something that is not there
        reason = str(error).splitlines()[0]
        raise InputError(
            f"train.platform {platform!r}: JAX starts no device ({reason}); JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        ) from None
    require(
        platform in ("any", found),
        f"train.platform {platform!r} requested, but JAX found {found!r}; install its jax plugin or pass --train.platform {found}",
    )
    there = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    require(devices <= len(there), f"mesh.data {devices}: JAX finds {len(there)} devices; --mesh.data 0 takes all")
    alone = devices in (0, len(there)) or jax.process_count() == 1
    require(alone, f"mesh.data {devices}: several processes use all their {len(there)} devices; leave it out")
    # Auto axes: flax's embedding lookup does not work under explicit ones.
    return Mesh(np.array(there[: devices or None]), (DATA,), axis_types=(AxisType.Auto,))


def cut_axis(path: Path, shape: tuple[int, ...], devices: int) -> int | None:
    """The axis along which so many devices share an array, or None where each holds it whole.

    Kernels and embeddings are cut along the larger of their last two axes that the devices divide: those of one parameter
    set, whether it is stored with a leading axis of sets or, as in the optimiser's state, alone.
    """
    if devices == 1 or not decays(path) or len(shape) < 2:
        return None
    divided = [axis for axis in (len(shape) - 2, len(shape) - 1) if shape[axis] % devices == 0]
    return max(divided, key=lambda axis: shape[axis], default=None)


@dataclass(frozen=True)
class Layout:
    """A mesh, and what of the state is cut over it."""

    mesh: Mesh
    sharding: str = "none"
    """A name of `SHARDINGS`."""
    late: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)
    """Path and shape of the parameters, [G, ...], that the model makes whole by itself, one set after another, by `whole`."""

    def axis(self, part: str, path: Path, shape: tuple[int, ...]) -> int | None:
        """The axis along which an array of the state's part ('params', 'opt_state', 'step') is cut."""
        return cut_axis(path, shape, self.mesh.size) if part in SHARDINGS[self.sharding] else None

    def specs(self, part: str, tree: Any) -> Any:
        """The partition spec of each array of a part."""

        def spec(path: Any, leaf: Any) -> PartitionSpec:
            axis = self.axis(part, names(path), leaf.shape)
            return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, DATA)

        return jax.tree_util.tree_map_with_path(spec, tree)

    def placed(self, part: str, tree: Any) -> Any:
        """The shape of each array of a part, with its sharding."""
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)),
            tree,
            self.specs(part, tree),
        )

    @property
    def whole(self) -> Callable[..., Any] | None:
        """`(parameters of one set, *path) -> the same, whole`, for the model inside `summed_gradients`; None where they are."""
        return self._whole if "params" in SHARDINGS[self.sharding] else None

    def _whole(self, tree: Any, *prefix: str) -> Any:
        def one(path: Any, leaf: Array) -> Array:
            full = prefix + names(path)
            axis = self.axis("params", full, self.late[full])  # of [G, ...]; a set has no G
            return leaf if axis is None else jax.lax.all_gather(leaf, DATA, axis=axis - 1, tiled=True)

        return jax.tree_util.tree_map_with_path(one, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the leading axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def made_whole(params: Any, mesh: Mesh) -> Any:
    """Inside jit: parameters brought together, for a model that is told nothing of devices.

    Left to itself, XLA brings together the batch instead, and every device computes with all of it.
    """
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def check_batch(
    field: str, batch_size: int, gradient_accumulation: int, devices: int, process_count: int | None = None
) -> None:
    """Refuses a batch that the devices and micro-batches cannot share evenly.

    Raises:
      InputError: naming all the numbers and the nearest batches that fit.
    """
    parts = devices * gradient_accumulation
    below = max(batch_size // parts, 1) * parts
    require(
        batch_size % parts == 0,
        f"{field} {batch_size} is not divisible by {devices} devices ({process_count or jax.process_count()} processes) "
        f"x train.gradient_accumulation {gradient_accumulation}; use {below} or {below + parts}",
    )


def put(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, Array]:
    """This process' rows of a batch as global arrays, cut by rows."""
    return {name: jax.make_array_from_process_local_data(by_rows(mesh), rows) for name, rows in batch.items()}


def of_each_device(mesh: Mesh, value: int) -> Array:
    """[devices] int32, of which this process' devices hold `value`."""
    return put(mesh, {"": np.full(len(mesh.local_devices), value, np.int32)})[""]


def local(batch: dict[str, Array]) -> dict[str, np.ndarray]:
    """The rows of a batch that lie on this process' devices."""
    return {
        name: np.concatenate(
            [part.data for part in sorted(rows.addressable_shards, key=lambda part: part.index[0].start or 0)]
        )
        for name, rows in batch.items()
    }


def prefetch(mesh: Mesh, batches: Iterator[dict[str, np.ndarray]], ahead: int = 2) -> Iterator[dict[str, Array]]:
    """Batches on the devices, `ahead` of them under way."""
    held: list[dict[str, Array]] = []
    for batch in batches:
        held.append(put(mesh, batch))
        if len(held) > ahead:
            yield held.pop(0)
    yield from held


def summed_gradients(loss_fn: Callable[..., Any], layout: Layout, micro_batches: int) -> Callable[..., Any]:
    """`(params, examples) -> (gradients, loss, metrics)`, each summed over micro-batches and then, once, over devices.

    `loss_fn(params, examples) -> (loss, metrics)` must add up over rows.  The parameters are marked as varying over the mesh
    before the loops: left to itself, jit puts an all-reduce of the shared layer's gradient into each of its L iterations.
    Where the optimiser's state is cut, each device gets its part of the summed gradients alone.

    Parameters that are cut are made whole before the loops, but for `layout.late`: those of different layers are never whole
    together, and the gradient of each is summed where it arises.
    """

    def gradients(params: Any, examples: Any) -> Any:
        axes = {
            (path := names(key)): tuple(layout.axis(part, path, leaf.shape) for part in ("params", "opt_state"))
            for key, leaf in jax.tree_util.tree_leaves_with_path(params)
        }

        def ready(key: Any, leaf: Array) -> Array:
            axis, _ = axes[path := names(key)]
            if axis is None:
                return varying(leaf)
            return leaf if path in layout.late else jax.lax.all_gather(leaf, DATA, axis=axis, tiled=True)

        def total(key: Any, grad: Array) -> Array:
            axis, summed = axes[path := names(key)]
            if axis is not None and path in layout.late:
                return grad  # the transpose of gathering it has summed it
            if summed is None:
                return jax.lax.psum(grad, DATA)
            return jax.lax.psum_scatter(grad, DATA, scatter_dimension=summed, tiled=True)

        def local(params: Any, examples: Any) -> Any:
            params = jax.tree_util.tree_map_with_path(ready, params)

            def add(total: Any, rows: Any) -> tuple[Any, None]:
                (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
                return jax.tree.map(jnp.add, total, (grads, loss, metrics)), None

            micro = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), examples)
            shapes = jax.eval_shape(loss_fn, params, jax.tree.map(lambda x: x[0], micro))
            zeros = varying(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, *shapes)))
            (grads, loss, metrics), _ = jax.lax.scan(add, zeros, micro)
            return jax.tree_util.tree_map_with_path(total, grads), *jax.lax.psum((loss, metrics), DATA)

        whole = PartitionSpec()
        return jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=(layout.specs("params", params), PartitionSpec(DATA)),
            out_specs=(layout.specs("opt_state", params), whole, whole),
        )(params, examples)

    def varying(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.pcast(x, DATA, to="varying"), tree)

    return gradients


def matmul_flops(dtype: str) -> float:
    """FLOP/s of all devices in a large matrix product, measured now: what no training step exceeds."""
    # XLA:CPU multiplies bfloat16 in float32, unless that is what comes out; a GPU writes that out, and loses an eighth.
    size, result = (2048, jnp.float32) if jax.default_backend() == "cpu" else (8192, None)
    # Random numbers: a GPU multiplies ones faster, on less power.
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=result).astype(dtype))
    return 2.0 * size**3 * jax.device_count() / best_seconds(lambda: product(matrix, matrix))


def best_seconds(call: Callable[[], Array], rounds: int = 5, calls: int = 4) -> float:
    """Seconds of a call, `calls` of them in a row, in the best of `rounds`; the first call is not timed."""
    call().block_until_ready()
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(calls):
            last = call()
        last.block_until_ready()
        found.append((time.perf_counter() - begun) / calls)
    return min(found)


def peak_flops(mesh: Mesh) -> float | None:
    """Data-sheet FLOP/s of all devices together, or None where unknown (a CPU)."""
    kind = mesh.devices.flat[0].device_kind
    found = max(
        (name for name in PEAK_TFLOPS if name in kind), key=len, default=None
    )  # the longest: "TPU v5 lite", not "TPU v5"
    return PEAK_TFLOPS[found] * 1e12 * mesh.size if found else None
