"""Google's checkpoints: folders and tars of google-research/albert, and unpacked TF-Hub modules.  Read only."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from albert_jax.config import read_json, require
from albert_jax.exchange.released_config import num_groups, read_config
from albert_jax.exchange.reshare import follow
from albert_jax.exchange.tensor_bundle import TensorBundle
from albert_jax.exchange.weights import Name, Shape, Weights, collect, present_heads
from albert_jax.model.heads import PRETRAINING, Albert

_BLOCK = "bert/encoder/transformer/group_{group}/inner_group_{inner}/"


def _dense(ours: str, theirs: str) -> dict[str, Name]:
    return {f"{ours}/{leaf}": Name(f"{theirs}/{leaf}") for leaf in ("kernel", "bias")}


def _norm(ours: str, theirs: str) -> dict[str, Name]:
    return {f"{ours}/scale": Name(f"{theirs}/gamma"), f"{ours}/bias": Name(f"{theirs}/beta")}


def _classes(ours: str, theirs: str) -> dict[str, Name]:
    return {f"{ours}/kernel": Name(f"{theirs}output_weights", True), f"{ours}/bias": Name(f"{theirs}output_bias")}


# google-research/albert modeling.py and the run_*.py beside it.  The FFN's second layer is nested under its first.
NAMES: dict[str, Name] = {
    **{
        f"embeddings/{kind}_embeddings/embedding": Name(f"bert/embeddings/{kind}_embeddings")
        for kind in ("word", "position", "token_type")
    },
    **_norm("embeddings/LayerNorm", "bert/embeddings/LayerNorm"),
    **_dense("encoder/embedding_hidden_mapping_in", "bert/encoder/embedding_hidden_mapping_in"),
    **{
        ours: name
        for part in ("query", "key", "value")
        for ours, name in _dense(f"encoder/attention/{part}", f"{_BLOCK}attention_1/self/{part}").items()
    },
    **_dense("encoder/attention/dense", f"{_BLOCK}attention_1/output/dense"),
    **_norm("encoder/attention/LayerNorm", f"{_BLOCK}LayerNorm"),
    **_dense("encoder/ffn/intermediate", f"{_BLOCK}ffn_1/intermediate/dense"),
    **_dense("encoder/ffn/output", f"{_BLOCK}ffn_1/intermediate/output/dense"),
    **_norm("encoder/ffn/LayerNorm", f"{_BLOCK}LayerNorm_1"),
    **_dense("pooler", "bert/pooler/dense"),
    **_dense("predictions/dense", "cls/predictions/transform/dense"),
    **_norm("predictions/LayerNorm", "cls/predictions/transform/LayerNorm"),
    "predictions/bias": Name("cls/predictions/output_bias"),
    **_classes("sop_classifier", "cls/seq_relationship/"),
    **_classes("classifier", ""),
    **_classes("qa_outputs", "cls/squad/"),
    **_dense("answer_class/start_logits", "start_logits/dense"),
    **_dense("answer_class/end_dense", "end_logits/dense_0"),
    **_norm("answer_class/LayerNorm", "end_logits/LayerNorm"),
    **_dense("answer_class/end_logits", "end_logits/dense_1"),
    **_dense("answer_class/answer_dense", "answer_class/dense_0"),
    "answer_class/answer_class/kernel": Name("answer_class/dense_1/kernel"),
}

SLOTS = ("adam_m", "adam_v", "lamb_m", "lamb_v")
"""Last parts of the names of what the optimiser keeps."""


class _Variables:
    """A bundle without optimiser slots and without TF-Hub's prefix."""

    def __init__(self, bundle: TensorBundle) -> None:
        self.path = bundle.path
        self._bundle = bundle
        self._stored = {}
        self.left = []
        for name in bundle.shapes:
            if name.rsplit("/", 1)[-1] in SLOTS or name in ("global_step", "beta1_power", "beta2_power"):
                self.left.append(f"{name}: the optimiser's")
            else:
                self._stored[name.removeprefix("module/")] = name
        self.shapes: Mapping[str, Shape] = {name: bundle.shapes[stored] for name, stored in self._stored.items()}

    def read(self, name: str) -> np.ndarray:
        return self._bundle.read(self._stored[name])


def find_prefix(folder: Path) -> Path | None:
    """The checkpoint in a folder, without `.index`; None if there is none.

    Raises:
      InputError: there are several.
    """
    found = sorted([*folder.glob("[!.]*.index"), *folder.glob("variables/variables.index")])
    if not found:
        return None
    names = ", ".join(path.name for path in found)
    require(len(found) == 1, f"{folder}: several checkpoints ({names}); name one of them, without .index")
    return found[0].with_suffix("")


def read(prefix: Path) -> tuple[Weights, Path | None]:
    """The model of a TF1 checkpoint, and its SentencePiece file if there is one beside it.

    `albert_config.json` is looked for beside the checkpoint, and in `assets/` of a TF-Hub module.

    Raises:
      InputError: files that are missing or damaged, or hold another model than the config says.
    """
    folder = prefix.parent.parent if prefix.parent.name == "variables" else prefix.parent
    places = [folder, folder / "assets"]
    configs = [place / "albert_config.json" for place in places if (place / "albert_config.json").is_file()]
    require(bool(configs), f"{folder}: no albert_config.json there; it came in the same archive")
    stored = read_json(configs[0])
    config, left = read_config(stored, configs[0])
    notes = []
    if stored["hidden_act"] == "gelu":
        config = replace(config, hidden_act="gelu_new")
        notes.append("hidden_act 'gelu' of Google's code is the tanh form: gelu_new here")
    config = replace(config, layer_norm_eps=1e-12)

    tensors = _Variables(TensorBundle(prefix))
    heads = present_heads(tensors, NAMES)
    missing = [head for head in PRETRAINING if head not in heads]
    if missing:
        notes.append(f"no {', '.join(missing)} in {prefix.name}: the model is without")
    shape = tensors.shapes.get("output_bias", ())
    count = shape[0] if "classifier" in heads and shape else 0
    labels = tuple(f"LABEL_{i}" for i in range(count))
    model = Albert(config, heads, labels)
    params, mapped = collect(model, tensors, NAMES)
    weights = Weights(model, params, mapped, left + tensors.left, notes)
    layers, groups = config.num_hidden_layers, num_groups(config)
    weights = follow(weights, tuple(int(i / layers * groups) for i in range(layers)))  # modeling.py's own formula
    vocabularies = sorted(path for place in places for path in place.glob("[!.]*.model"))
    return weights, vocabularies[0] if vocabularies else None


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is the prefix of a checkpoint."""
    return path.with_name(f"{path.name}.index").is_file()
