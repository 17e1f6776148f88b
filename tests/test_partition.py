"""Which axis of an array is sharded, and checks of the devices; training over several devices is in test_train."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from albert_jax.config import InputError
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, param_shapes, stacked_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.training import optim
from albert_jax.training.optim import OptimConfig, make_optimizer
from albert_jax.training.partition import Layout, check_batch_size, local_rows, make_mesh, prefetch, shard_axis

MODEL = Albert(AlbertConfig(vocab_size=64, hidden_size=48, num_attention_heads=4, num_hidden_layers=3, sharing="ffn"))


@pytest.mark.parametrize(
    ("shape", "stacked", "axis"),
    [
        ((64, 48), False, 0),
        ((48, 64), False, 1),
        ((3, 48, 64), True, 2),
        ((8, 48), True, None),  # a vector in each of 8 sets
        ((48,), False, None),
        ((), False, None),
        ((64, 3), False, 0),  # 8 devices do not divide 3
        ((6, 10), False, None),
    ],
    ids=str,
)
def test_shard_axis(shape: tuple[int, ...], stacked: bool, axis: int | None) -> None:
    """Matrices are sharded along their larger divisible axis.  Fails if the axis of parameter sets counts as one."""
    assert shard_axis(shape, stacked, 8) == axis
    assert shard_axis(shape, stacked, 1) is None


def test_sharding_does_not_depend_on_weight_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Excluding embeddings from weight decay leaves them sharded.  Fails if the layout asks `optim.decay_mask`."""
    layout = Layout(make_mesh("cpu", 8), "parameters", stacked_shapes(MODEL))
    params = param_shapes(MODEL)
    specs = layout.specs("params", params)
    assert specs["embeddings"]["word_embeddings"]["embedding"] == PartitionSpec(None, "data")
    assert specs["encoder"]["attention"]["query"]["bias"] == PartitionSpec()  # [G, H]
    assert specs["encoder"]["ffn"]["output"]["kernel"] == PartitionSpec(None, "data")  # [1, F, H]
    monkeypatch.setattr(optim, "decay_mask", lambda params: jax.tree.map(lambda leaf: False, params))
    assert layout.specs("params", params) == specs
    state = jax.eval_shape(make_optimizer(OptimConfig(), 10, is_stacked).transformation.init, params)
    sharded = [spec for spec in jax.tree.leaves(layout.specs("opt_state", state)) if spec != PartitionSpec()]
    matrices = sum(leaf.shape[0] if is_stacked(path) else 1 for path, leaf in _matrices(params))
    assert len(sharded) == 2 * matrices  # both moments of every matrix, one array per parameter set


def _matrices(params: dict) -> list:
    leaves = [(tuple(key.key for key in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    divisible = [(path, leaf) for path, leaf in leaves if any(size % 8 == 0 for size in leaf.shape[-2:])]
    return [(path, leaf) for path, leaf in divisible if len(leaf.shape) - is_stacked(path) == 2]


def test_batches_arrive_in_order_and_complete() -> None:
    """Fails if prefetching drops the last batches, or rows change their order."""
    mesh = make_mesh("cpu", 4)
    batches = [{"x": np.arange(8) + 10 * number} for number in range(5)]
    arrived = list(prefetch(mesh, iter(batches)))
    assert [local_rows(batch)["x"].tolist() for batch in arrived] == [batch["x"].tolist() for batch in batches]
    assert len(arrived[0]["x"].sharding.device_set) == 4


def test_devices_and_batch_sizes_are_checked() -> None:
    """Each error gives the numbers and what would fit."""
    with pytest.raises(InputError, match=r"mesh\.data 9: JAX found 8 devices"):
        make_mesh("any", 9)
    with pytest.raises(InputError, match=r"train\.platform is 'tpu', but JAX found 'cpu'"):
        make_mesh("tpu")
    with pytest.raises(InputError, match=r"global_batch_size 10 is not divisible by 4 devices .* use 8 or 12"):
        check_batch_size("train.global_batch_size", 10, 1, 4)
