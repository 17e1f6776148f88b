"""Five training steps of a small ALBERT with dropout; for test_step.py, and as a script in child processes:

python -m tests.train_script OUT SHARING MESH_SHARDING COORDINATOR N I
"""

import functools
import sys
from typing import Any

import jax
import numpy as np

from albert_jax.data.sequences import capacity
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, init_params, stacked_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.pretraining import objective as pretraining
from albert_jax.pretraining.objective import ObjectiveConfig, Vocabulary
from albert_jax.training import partition, processes
from albert_jax.training import step as train_step
from albert_jax.training.optim import OptimConfig, make_optimizer
from albert_jax.training.processes import DistributedConfig
from albert_jax.training.step import Workload, memory

STEPS, BATCH, LENGTH, VOCAB = 5, 16, 32, 300


def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Sequences of unequal lengths, so that rows and micro-batches have different numbers of masked tokens."""
    rng = np.random.default_rng(seed)
    room = capacity(LENGTH)
    result = []
    for _ in range(STEPS):
        tokens = np.zeros((BATCH, room), np.int32)
        sentence = np.full((BATCH, room), -1, np.int32)
        for row in range(BATCH):
            length, at, number = int(rng.integers(8, LENGTH)), 0, 0
            while at < length or number < 2:
                size = int(rng.integers(2, 9))
                tokens[row, at : at + size] = rng.integers(5, VOCAB, size)
                sentence[row, at : at + size] = number
                at, number = at + size, number + 1
        result.append({"tokens": tokens, "sentence": sentence, "document": np.arange(BATCH, dtype=np.int32)})
    return result


OBJECTIVE = ObjectiveConfig(max_seq_length=LENGTH, max_predictions_per_seq=5)
VOCABULARY = Vocabulary(VOCAB, 0, 2, 3, 4, np.arange(VOCAB) % 4 > 0)


@functools.cache
def drawn_batches() -> list[dict[str, np.ndarray]]:
    """The examples of `batches`, with dropout keys as numbers.  Steps that read them compile faster."""
    draw = jax.jit(functools.partial(pretraining.draw, OBJECTIVE, VOCABULARY))
    result = []
    for step, batch in enumerate(batches()):
        examples = draw(batch, jax.random.key(step))
        examples["dropout_keys"] = jax.random.key_data(examples["dropout_keys"])
        result.append(jax.device_get(examples))
    return result


def use_drawn(examples: dict[str, Any], key: Any) -> dict[str, Any]:
    """Takes the place of `draw` for `drawn_batches`."""
    return examples | {"dropout_keys": jax.random.wrap_key_data(examples["dropout_keys"])}


def make(
    accumulation: int = 1,
    sharing: str = "all",
    cut: str = "none",
    devices: int = 1,
    drawn: bool = False,
    optimizer: str = "lamb",
    **fields: Any,
) -> Any:
    """Mesh, step, function seed -> initial state, and the last arguments of the step.

    Args:
      accumulation: number of micro-batches.
      sharing: of the model's parameters.
      cut: the mesh sharding.
      devices: number of devices; 0: all.
      drawn: the step reads `drawn_batches` instead of `batches`.
      optimizer: a key of `OPTIMIZERS`.
      fields: of the model.
    """
    model_fields: dict[str, Any] = dict(
        vocab_size=VOCAB,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2 if sharing in ("none", "groups", "attention") else 4,  # separate layers compile slowly
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        sharing=sharing,
        remat="dots" if cut == "parameters" else "none",
    )
    model = Albert(AlbertConfig(**(model_fields | fields)))
    layout = partition.Layout(partition.make_mesh("any", devices), cut, stacked_shapes(model))
    apply = functools.partial(model.apply, gather_set=layout.gather_set)
    workload = Workload(
        init=functools.partial(init_params, model),
        draw=use_drawn if drawn else functools.partial(pretraining.draw, OBJECTIVE, VOCABULARY),
        loss=functools.partial(pretraining.loss, OBJECTIVE, apply, train=True),
        batches=lambda start: iter(batches()[start:]),
        evaluate=lambda params: {},
        flops_per_token=0.0,
    )
    optim = OptimConfig(optimizer=optimizer, num_warmup_steps=1, learning_rate=0.01)
    transformation = make_optimizer(optim, 100, is_stacked)
    step = train_step.make_step(workload, transformation, layout, accumulation)
    seed, signals = train_step.as_argument(0, layout.mesh), partition.device_values(layout.mesh, 0)
    return layout.mesh, step, train_step.make_init(workload, transformation, layout), (seed, signals)


@functools.cache
def train(
    devices: int,
    accumulation: int = 1,
    sharing: str = "all",
    cut: str = "none",
    drawn: bool = True,
    optimizer: str = "lamb",
    **fields: Any,
) -> dict[str, Any]:
    """Train five steps; see `make`.  Returns parameters, losses, bytes of memory, and the text of the compiled step."""
    mesh, step, init, rest = make(accumulation, sharing, cut, devices, drawn, optimizer, **fields)
    compiled_init = init.lower(rest[0]).compile()
    state = compiled_init(rest[0])
    state_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    number, count = jax.process_index(), jax.process_count()
    data = [
        {name: rows.reshape(count, -1, *rows.shape[1:])[number] for name, rows in batch.items()}
        for batch in (drawn_batches() if drawn else batches())
    ]
    compiled = step.lower(state, partition.put_batch(mesh, data[0]), *rest).compile()
    losses = []
    for batch in data:
        state, metrics = compiled(state, partition.put_batch(mesh, batch), *rest)
        losses.append(float(metrics["loss"][0]))
    params = state.params
    if count > 1:
        params = jax.jit(lambda tree: tree, out_shardings=partition.replicated(mesh))(params)
    return {
        "params": np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(params))]),
        "losses": np.array(losses),
        "devices": mesh.size,
        "state_bytes": state_bytes,
        "memory": memory(compiled),
        "memory_of_init": memory(compiled_init),
        "text": compiled.as_text(),
    }


def main(out: str, sharing: str, cut: str, *peer: str) -> None:
    """Write what `train` returns on all devices of all processes."""
    processes.start(DistributedConfig(peer[0], int(peer[1]), int(peer[2])))
    result = train(0, 1, sharing, cut, drawn=False)
    if processes.is_main():
        np.savez(out, **result)


if __name__ == "__main__":
    main(*sys.argv[1:])
