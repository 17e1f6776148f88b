"""What a training step holds on a device and moves between devices, on paper: from the shapes and shardings of the real step."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.extend.core import Var
from jax.sharding import AbstractMesh, AxisType

from albert_jax.model.sharing import layer_sets
from albert_jax.pretraining import run as pretrain
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.pretraining.task import batch_shapes, some_vocabulary
from albert_jax.training import partition
from albert_jax.training.optim import path_names
from albert_jax.training.partition import Layout, MeshConfig


@dataclass(frozen=True)
class Memory:
    """Bytes a device."""

    params: int
    opt_state: int
    gradients: int
    """Float32, before they are summed over devices: whole but for those of parameters that are cut by layers."""
    whole: int
    """Parameters that are cut, made whole for their use: all but the layers', and one layer; 0 where none are cut."""
    activations: int
    """Estimate: what autodiff keeps of a micro-batch for backward, and of one block what remat makes again."""

    @property
    def total(self) -> int:
        """All of them; XLA's other temporaries are not in it."""
        return self.params + self.opt_state + self.gradients + self.whole + self.activations


@dataclass(frozen=True)
class Traffic:
    """Bytes a step and device of the arrays that devices bring together, whole; sums of metrics are left out."""

    all_reduced: int = 0
    reduce_scattered: int = 0
    all_gathered: int = 0


def abstract_mesh(devices: int) -> Any:
    """Of devices that are not there: its size is all that shapes and shardings ask of a mesh."""
    return AbstractMesh((devices,), (partition.DATA,), axis_types=(AxisType.Auto,))


def activations(config: PretrainConfig, rows: int) -> int:
    """Bytes that backward finds of a micro-batch of `rows`, by JAX's own list of what autodiff saves of the real loss.

    Where `remat` makes a block's again, one block's are added: they are there together while it runs.
    """
    config = replace(config, mesh=MeshConfig())  # what one device computes, whatever is cut between its uses
    saved = _saved(config, rows)
    if config.model.remat == "none":
        return saved
    kept = replace(config, model=replace(config.model, remat="none"))
    return saved + _saved(kept, rows) // config.model.depth


def _saved(config: PretrainConfig, rows: int) -> int:
    task, _, _ = pretrain.make_task(config, some_vocabulary(config.model.vocab_size), abstract_mesh(1), None, None)
    key = jax.eval_shape(lambda: jax.random.key(0))
    examples = jax.eval_shape(task.draw, batch_shapes(config.objective, rows), key)

    def backward(params: Any, examples: Any) -> Any:
        return jax.vjp(lambda p: task.loss(p, examples), params, has_aux=True)[1]  # a tree of what it has saved

    params = jax.eval_shape(task.init, key)
    jaxpr = jax.make_jaxpr(backward)(params, examples).jaxpr
    given = set(jaxpr.invars)
    of_examples = set(jaxpr.invars[len(jax.tree.leaves(params)) :])
    for equation in jaxpr.eqns:  # what is of parameters alone, such as the one set of a shared layer, is them
        if any(isinstance(x, Var) and x in of_examples for x in equation.invars):
            of_examples.update(equation.outvars)
    kept = {x for x in jaxpr.outvars if isinstance(x, Var)} & of_examples - given
    arrays: list[Any] = [x.aval for x in kept]
    return sum(x.size * x.dtype.itemsize for x in arrays)


def held(tree: Any) -> int:
    """Bytes a device of arrays with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def by_layout(config: PretrainConfig, layout: Layout, params: Any) -> tuple[int, int, Traffic]:
    """Bytes of gradients and of parameters made whole, a device, and the traffic: what `partition.summed_gradients` does."""
    model, micro = config.model, config.train.gradient_accumulation
    sets = layer_sets(model.sharing, model.num_hidden_layers, model.num_hidden_groups, model.inner_group_num)
    gradients = whole = reduced = scattered = gathered = 0
    for key, leaf in jax.tree_util.tree_leaves_with_path(params):
        path, size = path_names(key), leaf.size * leaf.dtype.itemsize
        cut = layout.axis("params", path, leaf.shape) is not None
        late = cut and path in layout.stacked
        gradients += size // layout.mesh.size if late else size
        if layout.axis("opt_state", path, leaf.shape) is None:
            reduced += size
        elif (
            late
        ):  # a set at a time, in every micro-batch; where blocks have their own, once more in each one's backward
            ids, one = sets[path[1]], size // leaf.shape[0]
            own = max(ids) > 0
            uses = micro * (len(ids) if own else 1)
            whole, gathered, scattered = whole + one, gathered + uses * one * (1 + own), scattered + uses * one
        else:
            whole, gathered, scattered = whole + cut * size, gathered + size, scattered + size
    return gradients, whole, Traffic(reduced, scattered, gathered)


def size(count: float) -> str:
    """Bytes, for people: decimal units."""
    unit, divisor = next(((u, d) for u, d in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if count >= d), ("kB", 1e3))
    return f"{count / divisor:,.3g} {unit}" if count < 1e3 * divisor else f"{count / divisor:,.0f} {unit}"
