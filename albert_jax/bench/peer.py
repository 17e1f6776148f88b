"""The same work by Hugging Face's ALBERT in torch, on the same weights and inputs, in turn with ours."""

import importlib.util
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from albert_jax.bench.measuring import BenchConfig, Timed, made_up, steps_a_round, time_round
from albert_jax.config import require
from albert_jax.exchange.huggingface_names import NAMES
from albert_jax.exchange.weights import Weights, named_tensors
from albert_jax.model.heads import Albert, init_params
from albert_jax.pretraining import objective as pretraining
from albert_jax.pretraining import task as pretrain_task
from albert_jax.training import partition

SAME = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "inner_group_num",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
"""Settings that bear one name in both."""

IGNORED = -100
"""torch's label of a position that is not predicted."""


def check(config: BenchConfig, peer: str, rounds: int) -> None:
    """Refuses what cannot be compared, before anything is compiled.

    Raises:
      InputError: torch or transformers is not installed; a network or a split of the work that theirs does not have.
    """
    for name in ("torch", "transformers"):
        require(
            importlib.util.find_spec(name) is not None, f"--peer {peer}: {name} is not installed; pip install {name}"
        )
    model = config.model
    require(model.sharing == "all", f"--peer {peer}: it is compared with sharing 'all', not {model.sharing!r}")
    require(config.mesh.data == 1, f"--peer {peer}: it is compared on one device; leave --mesh.data out")
    whole = config.gradient_accumulation == 1
    require(whole, f"--peer {peer}: it takes the batch whole; leave --gradient-accumulation out")
    require(rounds >= 1, f"--peer-rounds must be at least 1, got {rounds}")


def compare(config: BenchConfig, timed: Timed, peer: str, dtype: str, rounds: int) -> dict[str, Any]:
    """Times ours and theirs in turn, `rounds` times each, a round being one of ours and one of theirs.

    Their work is ours: for 'gradients' loss and backward, for 'step' torch's AdamW besides (masks are drawn for neither: ours
    draws them in its step, theirs has them given), for 'inference' the encoder with its pooler.  bfloat16 is autocast there.

    Returns:
      `ratio`, the median over rounds of our time to theirs, `ratio_min` and `ratio_max`; `peer`, `peer_dtype`,
      `peer_seconds` and `our_seconds` (medians), `torch` and `transformers` (versions), `rounds`, torch's `threads`, and
      `loss` and `peer_loss` of the same weights and inputs, without dropout, where there is one.

    Raises:
      InputError: as `check`; a network that transformers does not have.
    """
    check(config, peer, rounds)
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    params, examples = _inputs(config)
    network = _network(config, params, device)
    theirs, loss = _work(config, network, examples, device, dtype, compiled=peer.endswith("-compiled"))
    runs = [timed, theirs]
    network.eval()  # the loss is compared without dropout
    outcome = float(loss().detach()) if config.work != "inference" else None
    network.train(config.work != "inference")
    ours = float(_loss(config, params, examples)) if config.work != "inference" else None
    steps = [steps_a_round(run) for run in runs]
    pairs = []
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)  # neither always follows the other's caches
        seconds = {which: time_round(runs[which], steps[which]) for which in order}
        pairs.append((seconds[0], seconds[1]))
    ratios = sorted(a / b for a, b in pairs)
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "rounds": rounds,
        "peer": peer,
        "peer_dtype": dtype,
        "peer_seconds": statistics.median(b for _, b in pairs),
        "our_seconds": statistics.median(a for a, _ in pairs),
        "loss": ours,
        "peer_loss": outcome,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


def _inputs(config: BenchConfig) -> tuple[Any, pretraining.Examples]:
    """Parameters, and examples as the step draws them, on the host."""
    mesh = partition.make_mesh("any", 1)
    vocabulary = pretrain_task.placeholder_vocabulary(config.model.vocab_size)
    model = pretrain_task.pretraining_model(config.model, config.objective)
    layout = pretrain_task.pretraining_layout(model, mesh, "none")
    task = pretrain_task.pretraining_workload(model, config.objective, vocabulary, layout)
    params = init_params(model, jax.random.key(0))
    examples = jax.jit(task.draw)(partition.put_batch(mesh, made_up(config)), jax.random.key(0))
    return jax.device_get(params), {name: value for name, value in examples.items() if name != "dropout_keys"}


def _loss(config: BenchConfig, params: Any, examples: pretraining.Examples) -> Any:
    """Ours, without dropout."""
    apply = Albert(config.model).apply
    return pretraining.loss(config.objective, apply, params, examples, train=False)[0]


def _network(config: BenchConfig, params: Any, device: str) -> Any:
    """Hugging Face's model with our weights."""
    import torch
    import transformers

    model = config.model
    fields = {name: getattr(model, name) for name in SAME}
    # Ours has no dropout before the sentence head.
    network = transformers.AlbertForPreTraining(transformers.AlbertConfig(**fields, classifier_dropout_prob=0.0))
    tensors = {
        mapped.tensor: torch.tensor(value) for mapped, value in named_tensors(Weights(Albert(model), params), NAMES)
    }
    told = network.load_state_dict(tensors, strict=False)
    tied = {"predictions.decoder.weight", "predictions.decoder.bias", "predictions.bias"}
    astray = [*told.unexpected_keys, *(key for key in told.missing_keys if key not in tied)]
    require(not astray, f"--peer: transformers {transformers.__version__} names {', '.join(astray[:3])} otherwise")
    return network.train(config.work != "inference").to(device)


def _work(
    config: BenchConfig, network: Any, examples: pretraining.Examples, device: str, dtype: str, compiled: bool
) -> tuple[Timed, Callable[[], Any]]:
    """What is timed, and what gives the loss."""
    import torch

    host = {name: np.asarray(value) for name, value in examples.items()}
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: torch.tensor(host[name], dtype=torch.long, device=device) for name in names}
    labels = np.full(host["input_ids"].shape, IGNORED)
    rows, places = np.nonzero(host["masked_lm_weights"])
    labels[rows, host["masked_lm_positions"][rows, places]] = host["masked_lm_labels"][rows, places]
    asked = {"labels": labels, "sentence_order_label": host["sentence_labels"]}
    targets = {name: torch.tensor(value, dtype=torch.long, device=device) for name, value in asked.items()}
    called = network.albert if config.work == "inference" else network
    called = torch.compile(called) if compiled else called
    optimizer = torch.optim.AdamW(network.parameters(), fused=device == "cuda") if config.work == "step" else None

    def casting() -> Any:
        return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else nullcontext()

    def wait(_: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def loss() -> Any:
        with casting():
            return called(**inputs, **targets).loss

    def train() -> None:
        network.zero_grad(set_to_none=True)
        loss().backward()
        if optimizer is not None:
            optimizer.step()

    def infer() -> None:
        with torch.inference_mode(), casting():
            called(**inputs)

    return Timed(None, infer if config.work == "inference" else train, wait), loss
