"""Hugging Face folders: config.json and model.safetensors, read and written; transformers 4 and 5."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config import read_json, require
from albert_jax.exchange.huggingface_names import ACTIVATIONS, ARCHITECTURES, BUFFERS, CLASSIFIERS, NAMES, TIED
from albert_jax.exchange.released_config import OPTIONAL, REQUIRED, num_groups, read_config
from albert_jax.exchange.reshare import follow, reshare
from albert_jax.exchange.safetensors import open_weights, save
from albert_jax.exchange.weights import Mapped, Shape, Tensors, Weights, collect, present_heads, spread
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert


class _Canonical:
    """Tensors under the names of `NAMES`: with the `albert.` prefix, each once, without buffers."""

    def __init__(self, tensors: Tensors) -> None:
        self.path = tensors.path
        self.left = []
        self._tensors = tensors
        bare = not any(name.startswith("albert.") for name in tensors.shapes)  # saved as AlbertModel
        self._stored: dict[str, str] = {}
        for name in tensors.shapes:
            inside = name.split(".")[0] in ("embeddings", "encoder", "pooler")
            full = f"albert.{name}" if bare and inside else name
            if full in BUFFERS:
                self.left.append(f"{name}: a buffer, not a parameter")
            else:
                self._stored[full] = name
        for second, first in TIED.items():
            if second in self._stored:
                other = self._stored.pop(second)
                if first in self._stored:
                    same = np.array_equal(tensors.read(other), tensors.read(self._stored[first]))
                    require(same, f"{self.path}: {other} is not {first}; untied embeddings are not read")
                    self.left.append(f"{other}: the same as {first}")
                else:
                    self._stored[first] = other
        self.shapes: Mapping[str, Shape] = {name: tensors.shapes[stored] for name, stored in self._stored.items()}

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._stored[name])


def read(folder: Path, allow_pickle: bool = False) -> Weights:
    """The model of a Hugging Face folder.

    A head of which no tensor is there is left out, and said.  `hidden_act` "gelu" is the erf form, as transformers runs it.

    Raises:
      InputError: files that are missing, damaged or no weights; tensors that are missing, unknown or of another shape.
    """
    path = folder / "config.json"
    require(path.is_file(), f"{folder}: no config.json there")
    stored = read_json(path)
    act = stored.get("hidden_act")
    stored["hidden_act"] = ACTIVATIONS.get(act, act) if isinstance(act, str) else act
    config, left = read_config(stored, path, ("architectures", "id2label", "label2id"))
    notes = []
    if act == "gelu":
        told = "hidden_act 'gelu' is the erf form in transformers, and here; Google trained v1 with the tanh form: "
        notes.append(f"{told}give hidden_act='gelu_new' for that")

    tensors = _Canonical(open_weights(folder, allow_pickle))
    architecture = _stated_architecture(stored, path)
    meant = ARCHITECTURES[architecture]
    table = NAMES | next((CLASSIFIERS[head] for head in meant if head in CLASSIFIERS), {})
    classifies = any(name.theirs in tensors.shapes for name in CLASSIFIERS["classifier"].values())
    told = f"{tensors.path} holds a classifier, of which 'architectures' in {path.name} says nothing ({architecture})"
    ways = ", ".join(name for name, heads in ARCHITECTURES.items() if set(heads) & set(CLASSIFIERS))
    require(not classifies or bool(set(meant) & set(CLASSIFIERS)), f"{told}; say one of {ways}")
    heads = present_heads(tensors, table)
    for head in meant:
        if head not in heads:
            notes.append(f"no {head} in {tensors.path}, though its config says {architecture}: the model is without it")
    if "predictions" in heads and "sop_classifier" not in heads:
        notes.append("no sop_classifier: there are no sop_logits")

    labels = _labels(stored, tensors.shapes, path) if {"classifier", "token_classifier"} & set(heads) else ()
    if config.embedding_size == config.hidden_size:
        config = replace(config, always_map_embeddings=True)
    model = Albert(config, heads, labels)
    params, mapped = collect(model, tensors, table)
    weights = Weights(model, params, mapped, left + tensors.left, notes)
    layers, groups = config.num_hidden_layers, num_groups(config)
    weights = follow(weights, tuple(int(i / (layers / groups)) for i in range(layers)))  # modeling_albert.py's formula
    return _without_identity(weights)


def _stated_architecture(stored: dict[str, Any], path: Path) -> str:
    """The class that config.json names; the pretraining one where it names none."""
    stated = stored.get("architectures") or ["AlbertForPreTraining"]
    is_list = isinstance(stated, list) and all(isinstance(name, str) for name in stated)
    require(is_list, f"{path}: architectures: expected a list of names, got {stated!r}")
    known = ", ".join(ARCHITECTURES)
    require(stated[0] in ARCHITECTURES, f"{path}: architecture {stated[0]!r} is not read; known: {known}")
    return stated[0]


def _labels(stored: dict[str, Any], shapes: Mapping[str, Shape], path: Path) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers."""
    shape = shapes.get("classifier.bias", (0,))
    count = shape[0] if len(shape) == 1 else 0
    named = stored.get("id2label", {str(i): f"LABEL_{i}" for i in range(count)})
    require(isinstance(named, dict), f"{path}: id2label: expected a table of number to name, got {named!r}")
    right = sorted(named) == sorted(str(i) for i in range(count))
    require(right, f"{path}: id2label names {len(named)} classes, the classifier has {count}")
    return tuple(str(named[str(i)]) for i in range(count))


def _without_identity(weights: Weights) -> Weights:
    """Where E = H, Hugging Face always maps embeddings; a map that changes nothing is none, as in the released code."""
    config = weights.model.config
    if not config.always_map_embeddings:
        return weights
    mapping = weights.params["encoder"]["embedding_hidden_mapping_in"]
    if not np.array_equal(mapping["kernel"], np.eye(config.hidden_size)) or mapping["bias"].any():
        return weights
    encoder = {
        name: value for name, value in weights.params["encoder"].items() if name != "embedding_hidden_mapping_in"
    }
    model = Albert(replace(config, always_map_embeddings=False), weights.model.heads, weights.model.labels)
    left = [*weights.left, "embedding_hidden_mapping_in: the identity, and E = H"]
    return replace(weights, model=model, params=weights.params | {"encoder": encoder}, left=left)


def _with_identity(weights: Weights) -> Weights:
    config = weights.model.config
    if config.maps_embeddings:
        return weights
    size = config.hidden_size
    mapping = {"kernel": np.eye(size, dtype=np.float32), "bias": np.zeros(size, np.float32)}
    encoder = weights.params["encoder"] | {"embedding_hidden_mapping_in": mapping}
    model = Albert(replace(config, always_map_embeddings=True), weights.model.heads, weights.model.labels)
    return replace(weights, model=model, params=weights.params | {"encoder": encoder})


def write(weights: Weights, folder: Path) -> tuple[list[Mapped], list[str]]:
    """Writes config.json and model.safetensors into `folder`.

    Returns:
      The tensors, and what a user should know of this export.

    Raises:
      InputError: heads for which Hugging Face has no class.
    """
    notes = []
    architecture = _architecture(weights.model.heads)
    meant, heads = set(ARCHITECTURES[architecture]), set(weights.model.heads)
    extra = heads - meant
    if meant - heads:
        missing = ", ".join(sorted(meant - heads))
        notes.append(f"no {missing}: {architecture} will start it from random numbers, and warn of it")
    if extra:
        notes.append(f"{', '.join(sorted(extra))}: stored beside what {architecture} reads, which will warn of it")
    config = weights.model.config
    if not _fits(config):
        notes.append(f"sharing '{config.sharing}' as {config.num_hidden_layers} groups, by copying")
        weights = reshare(weights, sharing="none", num_hidden_groups=1)
    weights = _with_identity(weights)
    (folder / "config.json").write_text(json.dumps(_config(weights.model, architecture), indent=2) + "\n")
    table = NAMES | next((CLASSIFIERS[head] for head in weights.model.heads if head in CLASSIFIERS), {})
    entries = list(spread(weights, table))
    save([(mapped.theirs, value) for mapped, value in entries], folder)
    return [mapped for mapped, _ in entries], notes


def _architecture(heads: tuple[str, ...]) -> str:
    fitting = [name for name, meant in ARCHITECTURES.items() if set(meant) <= set(heads)]
    own = set(heads) & set(CLASSIFIERS)
    require(len(own) <= 1, f"{', '.join(sorted(own))}: all are 'classifier' in a Hugging Face folder, which holds one")
    # The class of the classifier, where there is one: only it says which of the three a 'classifier' is.
    fitting = [name for name in fitting if own <= set(ARCHITECTURES[name])]
    if not set(heads) - {"pooler"}:
        return "AlbertModel"
    require(bool(fitting), f"heads {', '.join(heads)} have no class in Hugging Face's transformers")
    return min(fitting, key=lambda name: set(ARCHITECTURES[name]) != set(heads))


def _fits(config: AlbertConfig) -> bool:
    """Whether the sharing has a `num_hidden_groups`, and transformers' formula gives the layers the same groups."""
    if config.sharing == "none":
        return True
    if config.sharing not in ("all", "groups"):
        return False
    layers, groups = config.num_hidden_layers, config.num_hidden_groups
    return all(int(i / (layers / groups)) == i * groups // layers for i in range(layers))


def _config(model: Albert, architecture: str) -> dict[str, Any]:
    config = model.config
    values = {key: getattr(config, key) for key in REQUIRED + OPTIONAL}
    values |= {"architectures": [architecture], "model_type": "albert", "num_hidden_groups": num_groups(config)}
    values |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "dtype": "float32"}
    if model.labels:
        values["id2label"] = {str(i): label for i, label in enumerate(model.labels)}
        values["label2id"] = {label: i for i, label in enumerate(model.labels)}
    return dict(sorted(values.items()))


def transformers_outputs(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """What Hugging Face's own model gives in float32 for `inputs`; None where torch or transformers is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return None
    import torch
    import transformers

    architecture = read_json(folder / "config.json")["architectures"][0]
    network = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()
    batch = {name: torch.tensor(value) for name, value in inputs.items()}
    if architecture == "AlbertForMultipleChoice":  # [B, choices, S]: each row is a question with one choice
        batch = {name: value[:, None] for name, value in batch.items()}
    with torch.no_grad():
        outputs = network(**batch, output_hidden_states=True)
    found = {name: value.numpy() for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    if architecture == "AlbertForMultipleChoice":
        found["logits"] = found["logits"][:, 0]
    renamed = {"logits": "prediction_logits"} if architecture == "AlbertForMaskedLM" else {}
    found = {renamed.get(name, name): value for name, value in found.items()}
    return found | {"last_hidden_state": outputs.hidden_states[-1].numpy()}
