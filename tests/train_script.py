"""Run by test_train.py in processes with other numbers of devices: trains five steps and writes what came out.

python tests/train_script.py OUT GRADIENT_ACCUMULATION SHARING SENTENCE_OBJECTIVE
"""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax import partition, train
from albert_jax.checkpoint import fingerprint
from albert_jax.data.loader import capacity
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, init_params
from albert_jax.model.sharing import is_stacked
from albert_jax.objectives import pretraining
from albert_jax.objectives.pretraining import ObjectiveConfig, Vocabulary
from albert_jax.optim import OptimConfig, make_optimizer
from albert_jax.train import Task, TrainConfig

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


def make(accumulation: int, sharing: str = "all", sentence_objective: str = "sop", **model_fields: Any) -> Any:
    """Mesh, step function and fresh state of a small run with dropout."""
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
    )
    config = AlbertConfig(**(fields | model_fields))
    objective = ObjectiveConfig(
        max_seq_length=LENGTH,
        max_predictions_per_seq=5,
        sentence_objective=sentence_objective,
    )
    vocabulary = Vocabulary(VOCAB, 0, 2, 3, 4, np.arange(VOCAB) % 4 > 0)
    mesh = partition.make_mesh("any")
    task = Task(
        init=functools.partial(init_params, Albert(config)),
        draw=functools.partial(pretraining.draw, objective, vocabulary),
        loss=functools.partial(pretraining.loss, objective, Albert(config).apply, train=True),
        batches=lambda start: iter(batches()[start:]),
        evaluate=lambda params: {},
        flops_per_token=0.0,
    )
    optimizer = make_optimizer(OptimConfig(num_warmup_steps=1, learning_rate=0.01), 100, is_stacked)
    fresh, _ = train.init_state(task, optimizer, mesh, seed=0)
    config_of_run = TrainConfig(num_train_steps=STEPS, global_batch_size=BATCH, gradient_accumulation=accumulation)
    step = train.make_step(task, optimizer, mesh, config_of_run)
    seed = train.as_argument(0, mesh)
    return mesh, jax.jit(lambda state, batch: step(state, batch, seed), donate_argnums=0), fresh()


def main(out: str, accumulation: str, sharing: str, sentence_objective: str) -> None:
    """Trains and writes parameters, losses, fingerprint and the compiled step."""
    mesh, step, state = make(int(accumulation), sharing, sentence_objective)
    data = batches()
    text = step.lower(state, partition.put(mesh, data[0])).compile().as_text()
    losses = []
    for batch in data:
        state, metrics = step(state, partition.put(mesh, batch))
        losses.append(float(metrics["loss"][0]))
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        out, params=flat, losses=losses, devices=mesh.size, fingerprint=jax.jit(fingerprint)(state), text=np.array(text)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
