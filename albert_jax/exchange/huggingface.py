"""Read and write Hugging Face folders (config.json and model.safetensors), for transformers 4 and 5.

Hugging Face always maps the embeddings to the hidden size; the released code does not where E = H.  In that case we write
the identity, read the identity as no mapping, and keep any other mapping (`always_map_embeddings`).
"""

import importlib.util
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config import InputError, read_json, variant_name
from albert_jax.exchange.huggingface_names import ACTIVATIONS, ARCHITECTURES, BUFFERS, CLASSIFIERS, NAMES, TIED
from albert_jax.exchange.released_config import OPTIONAL, REQUIRED, read_config
from albert_jax.exchange.reshare import blocks_of, follow, merge, reshare
from albert_jax.exchange.safetensors import open_weights, save
from albert_jax.exchange.weights import (
    Mapped,
    Name,
    Renamed,
    Tensors,
    Weights,
    collect,
    default_labels,
    named_tensors,
    num_classes,
    present_heads,
    sentence_classes,
)
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import SENTENCE_CLASSES, Albert
from albert_jax.model.sharing import PASSES, Sets

MULTI_LABEL = "multi_label_classification"
"""`problem_type` of a model that gives a text any number of labels."""
MAPPING = "embedding_hidden_mapping_in"
WORDS = "embeddings.word_embeddings.weight"
HEAD_NAMES = ("predictions", "sop_classifier", "classifier", "qa_outputs")
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
RENAMED |= {"layer_norm.gamma": "layer_norm.weight", "layer_norm.beta": "layer_norm.bias"}
"""Old names in tensors, and the present ones."""
OLD_NAMES = re.compile("|".join(map(re.escape, RENAMED)))


def read(folder: Path, allow_pickle: bool = False) -> Weights:
    """Read a Hugging Face folder.

    The model has the heads for which the folder has tensors.  `hidden_act` "gelu" is the erf form, as in transformers.

    Raises:
      InputError: a file is missing, corrupted or not weights, or tensors are missing, unknown or of a different shape.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json")
    stored = read_json(path)
    act = stored.get("hidden_act")
    if isinstance(act, str):
        stored["hidden_act"] = ACTIVATIONS.get(act, act)
    config, skipped = read_config(stored, path, ("architectures", "id2label", "label2id", "problem_type"))
    if config.embedding_size == config.hidden_size:
        config = replace(config, always_map_embeddings=True)
    notes = []
    if act == "gelu":
        notes.append(
            "hidden_act 'gelu' is the erf form, as in transformers; Google trained v1 with the tanh form: "
            "for that, give hidden_act='gelu_new'"
        )

    tensors, same_or_unused = _canonical(open_weights(folder, allow_pickle))
    architecture = _stated_architecture(stored, path)
    if architecture not in ARCHITECTURES:
        notes.append(f"architecture {architecture!r} is unknown; the heads are those for which there are tensors")
        if {"classifier.weight", "albert.pooler.weight"} <= tensors.shapes.keys():
            architecture = "AlbertForSequenceClassification"
    class_heads = ARCHITECTURES.get(architecture, ())
    if "classifier.weight" in tensors.shapes and not set(class_heads) & set(CLASSIFIERS):
        ways = ", ".join(name for name, heads in ARCHITECTURES.items() if set(heads) & set(CLASSIFIERS))
        raise InputError(
            f"{tensors.path} holds a classifier, but 'architectures' in {path.name} is {architecture}; change it to one of {ways}"
        )
    table = _table(class_heads)
    heads = present_heads(tensors, table)
    notes += [
        f"{tensors.path} has no {head}, although its config says {architecture}: the model has none"
        for head in class_heads
        if head not in heads
    ]
    if "predictions" in heads and "sop_classifier" not in heads:
        notes.append("no sop_classifier: the outputs have no sop_logits")

    labels: tuple[str, ...] = ()
    classes = sentence_classes(num_classes(tensors, "sop_classifier.classifier.bias"))
    if {"classifier", "token_classifier"} & set(heads):
        labels = _labels(stored, default_labels(num_classes(tensors, "classifier.bias")), path)
    elif (
        "sop_classifier" in heads
        and isinstance(stored.get("id2label"), dict)
        and len(stored["id2label"]) == len(classes)
    ):
        names = _labels(stored, classes, path)
        classes = classes if names == default_labels(len(classes)) else names
    multi_label = stored.get("problem_type") == MULTI_LABEL and "classifier" in heads
    model = Albert(config, heads, labels, classes, multi_label)
    params, mapped = collect(model, tensors, table)
    weights = Weights(model, params, mapped, skipped + same_or_unused, notes)
    weights = follow(weights, _groups_of_layers(config.num_hidden_layers, config.num_hidden_groups))
    return _without_identity(weights)


def write(weights: Weights, folder: Path, special_ids: Sequence[int] | None = None) -> tuple[list[Mapped], list[str]]:
    """Write config.json and model.safetensors into `folder`.

    Args:
      weights: the model.
      folder: it exists.
      special_ids: those of the tokenizer; None: ALBERT's.

    Returns:
      The tensors, and notes on surprising conversions.

    Raises:
      InputError: Hugging Face has no class with these heads.
    """
    notes = []
    heads = set(weights.model.heads)
    architecture = _architecture(weights.model.heads)
    class_heads = set(ARCHITECTURES[architecture])
    if missing := class_heads - heads:
        notes.append(
            f"no {', '.join(sorted(missing))}: {architecture} will initialize it with random numbers, and warn"
        )
    if extra := heads - class_heads:
        notes.append(f"{', '.join(sorted(extra))}: stored, but {architecture} will ignore it, and warn")
    config = weights.model.config
    if PASSES in weights.params["encoder"]:
        notes.append(
            f"per_pass '{variant_name(config, 'per_pass')}' is merged into the layers, which are written as "
            f"{config.num_hidden_layers} groups"
        )
        weights = merge(weights)
    elif _num_hidden_groups(config) is None:
        notes.append(f"sharing '{config.sharing}' is written as {config.num_hidden_layers} groups, by copying")
        weights = reshare(weights, sharing="none")
    weights = _with_identity(weights)
    (folder / "config.json").write_text(json.dumps(_config(weights.model, architecture, special_ids), indent=2) + "\n")
    tensors = named_tensors(weights, _table(weights.model.heads))
    save([(mapped.tensor, value) for mapped, value in tensors], folder)
    return [mapped for mapped, _ in tensors], notes


def is_head(name: str) -> bool:
    """Whether a tensor belongs to a head."""
    return name.split(".")[0] in HEAD_NAMES


def _canonical(tensors: Tensors) -> tuple[Renamed, list[str]]:
    """The tensors under the names of `NAMES`, each once, without buffers; and a line for each that is left out."""
    skipped = []
    stored_names: dict[str, str] = {}
    modern = {name: OLD_NAMES.sub(lambda old: RENAMED[old.group()], name) for name in tensors.shapes}
    anchors = [name for name in modern.values() if name.endswith(WORDS)]
    if len(anchors) > 1:
        raise InputError(f"{tensors.path}: several ALBERTs ({', '.join(anchors)}); save one of them")
    # The prefix of a wrapper, such as "module."; a head may be at any level of it.
    prefix = (anchors or [WORDS])[0].removesuffix(WORDS).removesuffix("albert.")
    levels = [prefix[: at + 1] for at, character in enumerate(prefix) if character == "."]
    has_albert = any(name.startswith(f"{prefix}albert.") for name in modern.values())  # not if saved as AlbertModel
    for name, new_name in modern.items():
        inner = new_name.removeprefix(prefix)
        if not new_name.startswith(prefix):
            inner = next((rest for level in ["", *levels] if is_head(rest := new_name.removeprefix(level))), "")
            if not inner:
                skipped.append(f"{name}: not part of the ALBERT in {prefix}*")
                continue
        of_encoder = inner.split(".")[0] in ("embeddings", "encoder", "pooler")
        full = inner if has_albert or not of_encoder else f"albert.{inner}"
        if full in BUFFERS:
            skipped.append(f"{name}: a buffer, not a parameter")
        else:
            stored_names[full] = name
    for second, first in TIED.items():
        if second in stored_names:
            copy = stored_names.pop(second)
            original = stored_names.setdefault(first, copy)
            if original != copy:
                if not np.array_equal(tensors.read(copy), tensors.read(original)):
                    raise InputError(
                        f"{tensors.path}: {copy} differs from {first}; untied embeddings are not supported"
                    )
                skipped.append(f"{copy}: the same as {first}")
    return Renamed(tensors, stored_names), skipped


def _table(heads: Collection[str]) -> dict[str, Name]:
    """The names of the parameters of a model with `heads`."""
    return NAMES | next((CLASSIFIERS[head] for head in heads if head in CLASSIFIERS), {})


def _stated_architecture(stored: dict[str, Any], path: Path) -> str:
    """The class that config.json names; the pretraining class if it names none."""
    stated = stored.get("architectures") or ["AlbertForPreTraining"]
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        raise InputError(f"{path}: architectures: expected a list of names, got {stated!r}")
    return stated[0]


def _labels(stored: dict[str, Any], default: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """The names of the classes in config.json, in the order of their numbers; `default` if it has none."""
    if "id2label" not in stored:
        return default
    names, numbers = stored["id2label"], [str(i) for i in range(len(default))]
    if not isinstance(names, dict):
        raise InputError(f"{path}: id2label: expected a table of number -> name, got {names!r}")
    if sorted(names) != sorted(numbers):
        raise InputError(f"{path}: id2label names {len(names)} classes, the classifier has {len(numbers)}")
    return tuple(str(names[number]) for number in numbers)


def _without_identity(weights: Weights) -> Weights:
    config, encoder = weights.model.config, dict(weights.params["encoder"])
    if not config.always_map_embeddings:
        return weights
    mapping = encoder.pop(MAPPING)
    if not np.array_equal(mapping["kernel"], np.eye(config.hidden_size)) or mapping["bias"].any():
        return weights
    skipped = [*weights.skipped, f"{MAPPING}: it is the identity, and E = H"]
    return replace(_with_encoder(weights, encoder, always_map_embeddings=False), skipped=skipped)


def _with_identity(weights: Weights) -> Weights:
    config = weights.model.config
    if config.maps_embeddings:
        return weights
    size = config.hidden_size
    mapping = {"kernel": np.eye(size, dtype=np.float32), "bias": np.zeros(size, np.float32)}
    return _with_encoder(weights, weights.params["encoder"] | {MAPPING: mapping}, always_map_embeddings=True)


def _with_encoder(weights: Weights, encoder: dict[str, Any], always_map_embeddings: bool) -> Weights:
    config = replace(weights.model.config, always_map_embeddings=always_map_embeddings)
    return weights.with_config(config, params=weights.params | {"encoder": encoder})


def _architecture(heads: tuple[str, ...]) -> str:
    """The class of transformers to name in config.json: all its heads are in `heads`; all of `heads` if possible."""
    classifiers = set(heads) & set(CLASSIFIERS)
    if len(classifiers) > 1:
        raise InputError(f"{', '.join(sorted(classifiers))}: a Hugging Face folder can hold only one of them")
    if not set(heads) - {"pooler"}:
        return "AlbertModel"
    # If there is a classifier, the class must have it: only the class says which of the three a 'classifier' is.
    fitting = [name for name, have in ARCHITECTURES.items() if classifiers <= set(have) <= set(heads)]
    if not fitting:
        raise InputError(f"transformers has no class with the heads {', '.join(heads)}")
    return min(fitting, key=lambda name: set(ARCHITECTURES[name]) != set(heads))


def _groups_of_layers(num_layers: int, num_groups: int) -> Sets:
    """The group that each layer reads, by the formula of modeling_albert.py."""
    return tuple(int(i / (num_layers / num_groups)) for i in range(num_layers))


def _num_hidden_groups(config: AlbertConfig) -> int | None:
    """`num_hidden_groups` for config.json; None if transformers cannot express the sharing."""
    sets = config.layer_sets
    groups = (max(map(max, sets.values())) + 1) // config.inner_group_num
    expressed = blocks_of(_groups_of_layers(config.num_hidden_layers, groups), config)
    return groups if set(sets.values()) == {expressed} else None


def _config(model: Albert, architecture: str, special_ids: Sequence[int] | None) -> dict[str, Any]:
    config = model.config
    values = {key: getattr(config, key) for key in REQUIRED + OPTIONAL}
    values |= {"architectures": [architecture], "model_type": "albert", "num_hidden_groups": _num_hidden_groups(config)}
    pad, _, cls, sep, _ = special_ids or range(5)
    values |= {"bos_token_id": cls, "eos_token_id": sep, "pad_token_id": pad, "dtype": "float32"}
    if model.multi_label:
        values["problem_type"] = MULTI_LABEL
    labels = model.labels
    if not labels and model.sentence_classes != SENTENCE_CLASSES:  # AlbertForPreTraining needs their number
        labels = model.sentence_classes
    if labels:
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    return dict(sorted(values.items()))


def transformers_outputs(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The outputs of transformers' model in float32, under our names; None if torch or transformers is missing."""
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
    arrays = {name: value.numpy() for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    if architecture == "AlbertForMultipleChoice":
        arrays["logits"] = arrays["logits"][:, 0]
    if architecture == "AlbertForMaskedLM":
        arrays["prediction_logits"] = arrays.pop("logits")
    return arrays | {"last_hidden_state": outputs.hidden_states[-1].numpy()}
