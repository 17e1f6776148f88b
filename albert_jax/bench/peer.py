"""Time the same work in Hugging Face's ALBERT (torch), with the same weights and inputs, alternating with ours."""

import importlib.util
import statistics
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from albert_jax.bench.measure import BenchConfig, Benchmark, Timed, steps_per_round, time_round
from albert_jax.config import InputError
from albert_jax.exchange.huggingface_names import NAMES, TIED
from albert_jax.exchange.released_config import OPTIONAL, REQUIRED
from albert_jax.exchange.weights import Weights, named_tensors
from albert_jax.model.per_pass import NoVariant
from albert_jax.pretraining import objective as pretraining
from albert_jax.pretraining.task import pretraining_model
from albert_jax.reports.tables import markdown_table

IGNORED = -100
"""torch's label of a position that is not predicted."""


def check(config: BenchConfig, peer: str, rounds: int) -> None:
    """Check that a comparison is possible, before anything is compiled.

    Raises:
      InputError: torch or transformers is not installed, or transformers does not support the model or the work.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--peer {peer}: {package} is not installed; pip install {package}")
    model = config.model
    if model.per_pass != NoVariant() or model.inject or model.layer_weights:
        raise InputError(f"--peer {peer} does not support per_pass, inject and layer_weights")
    if any(max(sets) >= model.inner_group_num for sets in model.layer_sets.values()):
        raise InputError(f"--peer {peer} needs layers that share all parameters, got sharing {model.sharing!r}")
    if config.mesh.data != 1:
        raise InputError(f"--peer {peer} supports one device only; omit --mesh.data")
    if config.gradient_accumulation != 1:
        raise InputError(f"--peer {peer} does not support micro-batches; omit --gradient-accumulation")
    if rounds < 1:
        raise InputError(f"--peer-rounds must be at least 1, got {rounds}")


class HuggingFace:
    """Hugging Face's model with our weights and inputs.

    It does the same work as `Benchmark`, with two exceptions in a step: it updates with torch's AdamW, and it does not draw
    masks.  bfloat16 is autocast.
    """

    def __init__(self, config: BenchConfig, params: Any, examples: dict[str, Any], dtype: str, compiled: bool) -> None:
        import torch
        import transformers

        self.work, self.torch = config.work, torch
        self.device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        self.autocast = torch.autocast(self.device, torch.bfloat16) if dtype == "bfloat16" else nullcontext()
        fields = {name: getattr(config.model, name) for name in REQUIRED + OPTIONAL}
        fields["classifier_dropout_prob"] = 0.0  # our sentence head has no dropout
        self.model = transformers.AlbertForPreTraining(transformers.AlbertConfig(**fields))
        tensors = named_tensors(Weights(pretraining_model(config.model, config.objective), params), NAMES)
        keys = self.model.load_state_dict({m.tensor: torch.tensor(value) for m, value in tensors}, strict=False)
        if unmatched := {*keys.unexpected_keys, *keys.missing_keys} - TIED.keys():
            names = ", ".join(sorted(unmatched)[:3])
            raise InputError(f"--peer: transformers {transformers.__version__} has different tensors: {names}")
        self.model.train(config.work != "inference").to(self.device)
        part = self.model.albert if config.work == "inference" else self.model
        self.forward = torch.compile(part) if compiled else part
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=self.device == "cuda")
        labels = np.full(examples["input_ids"].shape, IGNORED)
        rows, predictions = np.nonzero(examples["masked_lm_weights"])
        positions = examples["masked_lm_positions"][rows, predictions]
        labels[rows, positions] = examples["masked_lm_labels"][rows, predictions]
        inputs = {name: examples[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        if config.work != "inference":
            inputs |= {"labels": labels, "sentence_order_label": examples["sentence_labels"]}
        self.inputs = {name: torch.tensor(x, dtype=torch.long, device=self.device) for name, x in inputs.items()}

    def run(self) -> None:
        """Start the computation once."""
        if self.work == "inference":
            with self.torch.inference_mode(), self.autocast:
                self.forward(**self.inputs)
            return
        self.model.zero_grad(set_to_none=True)
        self._loss().backward()
        if self.work == "step":
            self.optimizer.step()

    def wait(self, _: Any) -> None:
        """Wait until a computation is done."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def loss_without_dropout(self) -> float:
        """The loss of the current weights."""
        self.model.eval()
        loss = float(self._loss().detach())
        self.model.train()
        return loss

    def _loss(self) -> Any:
        with self.autocast:
            return self.forward(**self.inputs).loss


def compare(config: BenchConfig, benchmark: Benchmark, peer: str, dtype: str, rounds: int) -> dict[str, Any]:
    """Time our computation and the peer's in `rounds` alternating rounds.

    Args:
      config: the work.
      benchmark: our computation, from `measure`.
      peer: "huggingface", or "huggingface-compiled" for torch.compile.
      dtype: the peer's.
      rounds: number of rounds; each times both.

    Returns:
      `ratio` of our time to the peer's (median of the rounds), `ratio_min`, `ratio_max`, `rounds`; `peer`, `peer_dtype`,
      `peer_seconds` and `our_seconds` (medians); `torch` and `transformers` (versions), `threads` of torch; `loss` and
      `peer_loss` with the same weights and inputs, without dropout, or None for inference.

    Raises:
      InputError: see `check`; or transformers has different tensors, as for embedding_size = hidden_size.
    """
    check(config, peer, rounds)
    import torch
    import transformers

    params, examples = Benchmark(replace(config, work="gradients")).inputs
    params, examples = jax.device_get((params, {name: x for name, x in examples.items() if name != "dropout_keys"}))
    hugging_face = HuggingFace(config, params, examples, dtype, compiled=peer.endswith("-compiled"))
    loss = peer_loss = None
    if config.work != "inference":
        apply = pretraining_model(config.model, config.objective).apply
        loss = float(pretraining.loss(config.objective, apply, params, examples, train=False)[0])
        peer_loss = hugging_face.loss_without_dropout()
    computations: list[Timed] = [benchmark, hugging_face]
    steps = [steps_per_round(computation) for computation in computations]
    seconds: list[list[float]] = [[], []]
    for number in range(rounds):
        # In every second round the peer goes first, so that neither always runs on the other's caches.
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            seconds[which].append(time_round(computations[which], steps[which]))
    ratios = [our_time / peer_time for our_time, peer_time in zip(*seconds, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": rounds,
        "peer": peer,
        "peer_dtype": dtype,
        "peer_seconds": statistics.median(seconds[1]),
        "our_seconds": statistics.median(seconds[0]),
        "loss": loss,
        "peer_loss": peer_loss,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


def peer_table(peer: dict[str, Any]) -> str:
    """The result of `compare` as a Markdown table."""
    spread = f"{peer['ratio_min']:.3f} to {peer['ratio_max']:.3f} in {peer['rounds']} alternating rounds"
    rows = {
        "our time / their time": f"{peer['ratio']:.3f} ({spread})",
        "time per step, ours and theirs": f"{1e3 * peer['our_seconds']:,.4g} ms, {1e3 * peer['peer_seconds']:,.4g} ms",
    }
    if peer["loss"] is not None:
        rows["loss with the same weights and inputs"] = f"{peer['loss']:.5f}, {peer['peer_loss']:.5f}"
    versions = f"torch {peer['torch']}, transformers {peer['transformers']}"
    return markdown_table([f"compared with {peer['peer']} in {peer['peer_dtype']} ({versions})", ""], rows.items())
