"""Run by test_train.py in processes with other numbers of devices: trains five steps and writes what came out.

python -m tests.train_script OUT GRADIENT_ACCUMULATION SHARING SENTENCE_OBJECTIVE MESH_SHARDING [COORDINATOR N I]
"""

import functools
import sys
from pathlib import Path
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
from albert_jax.training.integrity import fingerprint
from albert_jax.training.optim import OptimConfig, make_optimizer
from albert_jax.training.processes import DistributedConfig
from albert_jax.training.step import Workload, memory

STEPS, BATCH, LENGTH, VOCAB = 5, 16, 32, 300


def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Sequences of unequal lengths, so that masked tokens differ from row to row and from micro-batch to micro-batch."""
    rng = np.random.default_rng(seed)
    room = capacity(LENGTH)
    made = []
    for _ in range(STEPS):
        tokens = np.zeros((BATCH, room), np.int32)
        sentence = np.full((BATCH, room), -1, np.int32)
        for row in range(BATCH):
            wanted, at, number = int(rng.integers(8, LENGTH)), 0, 0
            while at < wanted or number < 2:
                size = int(rng.integers(2, 9))
                tokens[row, at : at + size] = rng.integers(5, VOCAB, size)
                sentence[row, at : at + size] = number
                at, number = at + size, number + 1
        made.append({"tokens": tokens, "sentence": sentence, "document": np.arange(BATCH, dtype=np.int32)})
    return made


def make(
    accumulation: int, sharing: str = "all", sentence_objective: str = "sop", cut: str = "none", **model_fields: Any
) -> Any:
    """Mesh, step, seed -> fresh state, and the step's last arguments of a small run with dropout."""
    fields: dict[str, Any] = dict(
        vocab_size=VOCAB,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        sharing=sharing,
        remat="dots" if cut == "parameters" else "none",
    )
    config = AlbertConfig(**(fields | model_fields))
    objective = ObjectiveConfig(
        max_seq_length=LENGTH,
        max_predictions_per_seq=5,
        sentence_objective=sentence_objective,
    )
    vocabulary = Vocabulary(VOCAB, 0, 2, 3, 4, np.arange(VOCAB) % 4 > 0)
    model = Albert(config)
    layout = partition.Layout(partition.make_mesh("any"), cut, stacked_shapes(model))
    apply = functools.partial(model.apply, gather_set=layout.gather_set)
    task = Workload(
        init=functools.partial(init_params, model),
        draw=functools.partial(pretraining.draw, objective, vocabulary),
        loss=functools.partial(pretraining.loss, objective, apply, train=True),
        batches=lambda start: iter(batches()[start:]),
        evaluate=lambda params: {},
        flops_per_token=0.0,
    )
    optimizer = make_optimizer(OptimConfig(num_warmup_steps=1, learning_rate=0.01), 100, is_stacked)
    step = train_step.make_step(task, optimizer, layout, accumulation)
    seed, calm = train_step.as_argument(0, layout.mesh), partition.device_values(layout.mesh, 0)
    return layout.mesh, step, train_step.make_init(task, optimizer, layout), (seed, calm)


def main(out: str, accumulation: str, sharing: str, sentence_objective: str, cut: str, *joined: str) -> None:
    """Trains and writes parameters, losses, fingerprint, what a device holds, and the compiled step."""
    if joined:
        processes.start(DistributedConfig(joined[0], int(joined[1]), int(joined[2])))
    mesh, step, init, rest = make(int(accumulation), sharing, sentence_objective, cut)
    state = init(rest[0])
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    number, count = jax.process_index(), jax.process_count()
    data = [
        {name: rows.reshape(count, -1, *rows.shape[1:])[number] for name, rows in batch.items()} for batch in batches()
    ]
    compiled = step.lower(state, partition.put_batch(mesh, data[0]), *rest).compile()
    losses = []
    for batch in data:
        state, metrics = step(state, partition.put_batch(mesh, batch), *rest)
        losses.append(float(metrics["loss"][0]))
    everywhere = jax.jit(lambda tree: tree, out_shardings=partition.replicated(mesh))
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(everywhere(state.params))])
    mark = jax.jit(fingerprint)(state)
    if number == 0:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            out,
            params=flat,
            losses=losses,
            devices=mesh.size,
            fingerprint=mark,
            held=held,
            memory=memory(compiled),
            memory_of_init=memory(init.lower(rest[0]).compile()),
            text=np.array(compiled.as_text()),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
