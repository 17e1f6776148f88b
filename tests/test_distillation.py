"""A teacher in pretraining and in fine-tuning.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config import InputError, from_dict, to_dict
from albert_jax.data.batches import collate
from albert_jax.data.sources import DataConfig
from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.exchange.weights import Weights
from albert_jax.finetuning import family, files
from albert_jax.finetuning import teacher as finetuning_teacher
from albert_jax.finetuning.run import FinetuneConfig, load_config
from albert_jax.finetuning.tasks import TASKS
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, init_params
from albert_jax.pretraining.distillation import (
    DistillationConfig,
    check_teacher,
    hidden_difference,
    soft_cross_entropy,
    with_teacher,
)
from albert_jax.pretraining.run import PretrainConfig, training_parts
from albert_jax.pretraining.task import pretraining_model
from albert_jax.training import partition
from albert_jax.training import step as train_step
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig
from albert_jax.training.partition import MeshConfig
from albert_jax.training.step import Workload

from .conftest import overrides_of
from .small_models import SMALL
from .synthetic_tasks import FIELDS as FINETUNE_FIELDS
from .synthetic_tasks import WRITE, finetune_words
from .train_script import BATCH, LENGTH, OBJECTIVE, VOCAB, VOCABULARY, batches
from .weight_files import random_weights

FIELDS: dict[str, Any] = SMALL | {"vocab_size": VOCAB, "max_position_embeddings": LENGTH}


def test_soft_cross_entropy() -> None:
    """Against numpy, and equal to the entropy if student and teacher agree.  Fails without the factor T^2."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 3, 7))
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in (teacher, student))
    np.testing.assert_allclose(soft_cross_entropy(student, teacher, 2.0), -4 * (p * np.log(q)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(soft_cross_entropy(teacher, teacher, 2.0), -4 * (p * np.log(p)).sum(-1), rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(soft_cross_entropy(x, teacher, 2.0)))(jnp.asarray(teacher))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_layers_of_the_teacher() -> None:
    """Two layers learn from layers 2 and 4 of four; embeddings do not count.  Fails if layer i learned from layer i."""
    student, teacher = (
        np.random.default_rng(0).normal(size=(3, 2, 5, 4)),
        np.random.default_rng(1).normal(size=(5, 2, 5, 4)),
    )
    expected = np.mean([(student[1] - teacher[2]) ** 2, (student[2] - teacher[4]) ** 2], axis=(0, -1))
    np.testing.assert_allclose(hidden_difference(student, teacher), expected, rtol=1e-5)


def trained(devices: int, distillation: DistillationConfig, sharding: str = "none", accumulation: int = 1) -> Any:
    """The losses of five steps, the last metrics and the parameters; the teacher has unshared layers."""
    config = PretrainConfig(
        run_dir="unused",
        model=AlbertConfig(**FIELDS | {"num_hidden_layers": 2}, sharing="none"),
        data=DataConfig(),
        objective=OBJECTIVE,
        optim=OptimConfig(learning_rate=0.02, num_warmup_steps=1),
        train=TrainConfig(num_train_steps=20, global_batch_size=BATCH, gradient_accumulation=accumulation),
        mesh=MeshConfig(devices, sharding),
    )
    mesh = partition.make_mesh("cpu", devices)
    workload, optimizer, layout = training_parts(config, VOCABULARY, mesh)
    teacher = random_weights(
        **{name: value for name, value in FIELDS.items() if name not in SMALL or SMALL[name] != value}
    )
    apply: Any = pretraining_model(config.model, OBJECTIVE).apply
    workload = with_teacher(
        workload,
        distillation,
        OBJECTIVE,
        lambda *words, **options: apply(*words, gather_set=layout.gather_set, **options),
        teacher,
    )
    step = train_step.make_step(workload, optimizer, layout, accumulation)
    state = train_step.make_init(workload, optimizer, layout)(seed := train_step.as_argument(0, mesh))
    frozen = jax.device_put(workload.frozen, partition.replicated(mesh))
    losses = []
    for batch in batches():
        signals = partition.device_values(mesh, 0)
        state, metrics = step(state, partition.put_batch(mesh, batch), seed, signals, *frozen)
        losses.append(float(metrics["loss"][0]))
    return losses, jax.device_get(metrics), jax.device_get(state.params)


def test_a_teacher_on_several_devices() -> None:
    """Losses on eight devices, with sharded parameters and micro-batches, equal those on one.

    Fails if the scales were those of a device, or a weight were ignored.
    """
    distillation = DistillationConfig(teacher="teacher", weight=0.7, hidden_weight=0.5)
    one, eight = trained(1, distillation), trained(8, distillation, "parameters", 2)
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), eight[2], one[2])
    metrics = {name: value[0] / value[1] for name, value in one[1].items() if name.endswith("_loss")}
    total = (
        metrics["mlm_loss"] + metrics["sop_loss"] + 0.7 * metrics["distillation_loss"] + 0.5 * metrics["hidden_loss"]
    )
    assert one[0][-1] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", ["sst2", "stsb", "multilabel", "squad1", "squad2", "race", "ner"])
def test_a_teacher_in_every_family(name: str, tmp_path: Path) -> None:
    """A student that equals its teacher has the gradient of the loss without teacher; another one has not.

    Fails if the teacher saw other inputs, or its prediction were another one of the task's.
    """
    _, experiment, *words = finetune_words(name, tmp_path, data__max_train_samples=8)
    config = load_config(experiment, overrides_of(FinetuneConfig, [*words, *WRITE[name](tmp_path)]))
    task = TASKS[name]
    split = family.read_splits(task, files.find(config.data, task.splits), config.data)["train"]
    rows = task.rows(split, open_tokenizer(FINETUNE_FIELDS["data.vocab"]), config.data)
    batch = collate([rows[number] for number in range(6)], 6, 32)
    fields = to_dict(config.model) | {"vocab_size": 500, "classifier_dropout_prob": 0.0}
    model = Albert(from_dict(AlbertConfig, fields), task.heads(config.data), split.labels)
    plain = Workload(
        init=functools.partial(init_params, model),
        draw=functools.partial(family.draw, model.config),
        loss=functools.partial(family.train_loss, task, model.apply),
        batches=lambda step: iter(()),
        evaluate=lambda params: {},
        flops_per_token=0.0,
    )
    params, other = (jax.jit(plain.init)(jax.random.key(seed)) for seed in (0, 1))
    distillation = DistillationConfig(weight=0.7, hidden_weight=0.5)
    taught = finetuning_teacher.with_teacher(
        plain, distillation, task, model.apply, Weights(model, params, []), config.data
    )

    @jax.jit
    def gradient(params: Any) -> Any:
        value = jax.value_and_grad(plain.loss, has_aux=True)(params, plain.draw(batch, jax.random.key(2)))
        drawn = taught.draw(batch, jax.random.key(2))
        return value, jax.value_and_grad(taught.loss, has_aux=True)(params, drawn, *taught.frozen)

    for student in (params, other):
        ((loss, _), wanted), ((total, metrics), found) = gradient(student)
        means = {name: value[0] / value[1] for name, value in metrics.items()}
        total_of_parts = loss + 0.7 * means["distillation_loss"] + 0.5 * means["hidden_loss"]
        assert float(total) == pytest.approx(float(total_of_parts), rel=1e-5)
        differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), found, wanted)
        assert (max(jax.tree.leaves(differences)) < 1e-6) == (student is params), differences


def teacher(**changes: Any) -> Weights:
    heads = changes.pop("heads", ("pooler", "predictions", "sop_classifier"))
    return random_weights(heads, **changes)


def check(
    weights: Weights,
    heads: tuple[str, ...] = ("predictions",),
    length: int = 16,
    hidden_weight: float = 0.0,
    **student: Any,
) -> None:
    config = DistillationConfig("T", hidden_weight=hidden_weight)
    check_teacher(config, Albert(AlbertConfig(**SMALL), **student), length, heads, weights.model)


CLASSES: dict[str, Any] = {"heads": ("pooler", "classifier"), "labels": ("no", "yes")}


MISTAKES: dict[str, Callable[[], object]] = {
    "weight must be finite and >= 0, got -1": lambda: DistillationConfig(weight=-1.0),
    "temperature must be finite and > 0, got 0": lambda: DistillationConfig(temperature=0.0),
    "distillation.teacher T: it has no head predictions; its heads are pooler": lambda: check(
        teacher(heads=("pooler",))
    ),
    "distillation.teacher T: its classes are yes, no, those of the data no, yes": lambda: check(
        teacher(heads=("pooler", "classifier"), labels=("yes", "no")), ("classifier",), labels=("no", "yes")
    ),
    "distillation.teacher T: it gives each text one class, unlike the student": lambda: check(
        teacher(**CLASSES), ("classifier",), labels=("no", "yes"), multi_label=True
    ),
    "distillation.teacher T: its vocab_size is 50, the student's 40": lambda: check(teacher(vocab_size=50)),
    "distillation has settings, but no teacher": lambda: DistillationConfig(weight=2.0).check_teacher_given(),
    "distillation.teacher T: it has 16 positions, the sequences have 32": lambda: check(teacher(), length=32),
    "distillation.teacher T: its hidden_size is 32, the student's 16; set": lambda: check(
        teacher(hidden_size=32), hidden_weight=1.0
    ),
    "distillation.hidden_weight needs model.depth_sampling fixed": lambda: DistillationConfig(
        hidden_weight=1.0
    ).check_depth(AlbertConfig(depth_sampling="uniform")),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_errors_in_one_line(message: str) -> None:
    with pytest.raises(InputError) as error:
        MISTAKES[message]()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
