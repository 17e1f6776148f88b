"""Read Google's checkpoints: those of google-research/albert, and unpacked TF-Hub modules."""

import re
from dataclasses import replace
from pathlib import Path

from albert_jax.config import InputError, read_json
from albert_jax.exchange.released_config import read_config
from albert_jax.exchange.reshare import follow
from albert_jax.exchange.tensor_bundle import TensorBundle
from albert_jax.exchange.weights import (
    Name,
    Renamed,
    Weights,
    collect,
    default_labels,
    num_classes,
    present_heads,
    sentence_classes,
)
from albert_jax.model.heads import PRETRAINING, Albert

_BLOCK = "bert/encoder/transformer/group_{group}/inner_group_{inner}/"
_PASS = "bert/encoder/transformer/layer_{group}/inner_group_{inner}/"


def _dense(parameter: str, tensor: str) -> dict[str, Name]:
    return {f"{parameter}/{leaf}": Name(f"{tensor}/{leaf}") for leaf in ("kernel", "bias")}


def _norm(parameter: str, tensor: str) -> dict[str, Name]:
    return {f"{parameter}/scale": Name(f"{tensor}/gamma"), f"{parameter}/bias": Name(f"{tensor}/beta")}


def _classes(parameter: str, scope: str) -> dict[str, Name]:
    return {
        f"{parameter}/kernel": Name(f"{scope}output_weights", True),
        f"{parameter}/bias": Name(f"{scope}output_bias"),
    }


# google-research/albert, modeling.py and run_*.py.  The FFN's second layer is nested under its first.
NAMES: dict[str, Name] = {
    **{
        f"embeddings/{kind}_embeddings/embedding": Name(f"bert/embeddings/{kind}_embeddings")
        for kind in ("word", "position", "token_type")
    },
    **_norm("embeddings/LayerNorm", "bert/embeddings/LayerNorm"),
    **_dense("encoder/embedding_hidden_mapping_in", "bert/encoder/embedding_hidden_mapping_in"),
    **{
        parameter: name
        for part in ("query", "key", "value")
        for parameter, name in _dense(f"encoder/attention/{part}", f"{_BLOCK}attention_1/self/{part}").items()
    },
    **_dense("encoder/attention/dense", f"{_BLOCK}attention_1/output/dense"),
    **_norm("encoder/attention/LayerNorm", f"{_BLOCK}LayerNorm"),
    **_norm("encoder/per_pass/attention/LayerNorm", f"{_PASS}LayerNorm"),
    **_dense("encoder/ffn/intermediate", f"{_BLOCK}ffn_1/intermediate/dense"),
    **_dense("encoder/ffn/output", f"{_BLOCK}ffn_1/intermediate/output/dense"),
    **_norm("encoder/ffn/LayerNorm", f"{_BLOCK}LayerNorm_1"),
    **_norm("encoder/per_pass/ffn/LayerNorm", f"{_PASS}LayerNorm_1"),
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

KERAS_NORM = re.compile(
    r"(.*?)(?:group_0(?:_\d+)?/layer_(\d+)/)?(inner_group_0/)?layer_normalization(?:_(\d+))?/(gamma|beta)"
)
"""Names of LayerNorms where the code was changed to Keras layers, which never share their parameters: all LayerNorms are
numbered in the order in which they run, and layers have their own (google-research/albert, issue 241)."""

OPTIMIZER_SLOTS = ("adam_m", "adam_v", "lamb_m", "lamb_v")
"""Last parts of the names of the optimizer's variables."""
OPTIMIZER_SCALARS = ("global_step", "beta1_power", "beta2_power")


def find_prefix(folder: Path) -> Path | None:
    """The path of the checkpoint in a folder, without `.index`; None if there is none.

    Raises:
      InputError: the folder holds several, and no file `checkpoint` names one of them.
    """
    found = sorted([*folder.glob("[!.]*.index"), *folder.glob("variables/variables.index")])
    newest = re.search(r'^model_checkpoint_path: "(.*)"$', _text(folder / "checkpoint"), re.MULTILINE)
    if newest and (chosen := folder / f"{Path(newest[1]).name}.index") in found:
        return chosen.with_suffix("")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{folder}: several checkpoints ({names}); name one of them, without .index")
    return found[0].with_suffix("") if found else None


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint, named without `.index`."""
    return path.with_name(f"{path.name}.index").is_file()


def read(prefix: Path) -> tuple[Weights, Path | None]:
    """Read a TF1 checkpoint.

    `albert_config.json` and the vocabulary (a SentencePiece model, or vocab*.txt) are searched beside it, and in `assets/` of a
    TF-Hub module.

    Returns:
      The weights, and the vocabulary or None.

    Raises:
      InputError: a file is missing or corrupted, or the tensors do not fit the config.
    """
    folder = prefix.parent.parent if prefix.parent.name == "variables" else prefix.parent
    places = [folder, folder / "assets"]
    names = ("albert_config.json", "config.json")
    config_file = next((path for name in names for place in places if (path := place / name).is_file()), None)
    if config_file is None:
        raise InputError(f"{folder}: no albert_config.json; it came in the same archive as the checkpoint")
    stored = read_json(config_file)
    config, skipped = read_config(stored, config_file)
    notes = []
    if config.hidden_act == "gelu":
        config = replace(config, hidden_act="gelu_new")
        notes.append("hidden_act 'gelu' means the tanh form in Google's code: gelu_new here")
    config = replace(config, layer_norm_eps=1e-12)  # fixed in Google's code

    tensors, optimizer_variables = _without_optimizer(TensorBundle(prefix))
    if any(name.startswith(_PASS.split("{")[0]) for name in tensors.shapes):
        config = replace(config, per_pass="norm")
        notes.append("each layer has its own LayerNorms: per_pass norm")
    heads = present_heads(tensors, NAMES)
    if missing := [head for head in PRETRAINING if head not in heads]:
        notes.append(f"{prefix.name} has no {', '.join(missing)}, and so the model has none")
    labels = default_labels(num_classes(tensors, "output_bias"))
    classes = sentence_classes(num_classes(tensors, "cls/seq_relationship/output_bias"))
    model = Albert(config, heads, labels, classes)
    params, mapped = collect(model, tensors, NAMES)
    weights = Weights(model, params, mapped, skipped + optimizer_variables, notes)
    layers, groups = config.num_hidden_layers, config.num_hidden_groups
    weights = follow(weights, tuple(int(i / layers * groups) for i in range(layers)))  # as in modeling.py
    vocabularies = [
        path for glob in ("[!.]*.model", "vocab*.txt") for place in places for path in sorted(place.glob(glob))
    ]
    return weights, vocabularies[0] if vocabularies else None


def _without_optimizer(bundle: TensorBundle) -> tuple[Renamed, list[str]]:
    """The variables of the model without TF-Hub's prefix, and a line for each of the optimizer's."""
    stored_names: dict[str, str] = {}
    skipped = []
    for name in bundle.shapes:
        if name.rsplit("/", 1)[-1] in OPTIMIZER_SLOTS or name in OPTIMIZER_SCALARS:
            skipped.append(f"{name}: of the optimizer")
        else:
            known = _without_keras(name.removeprefix("module/"))
            if known in stored_names:
                raise InputError(f"{bundle.path}: {stored_names[known]} and {name} are both {known}")
            stored_names[known] = name
    return Renamed(bundle, stored_names), skipped


def _without_keras(name: str) -> str:
    """The name in `NAMES` of a LayerNorm that was stored under a Keras name; other names as they are."""
    match = KERAS_NORM.fullmatch(name)
    if match is None:
        return name
    scope, layer, inner, number, leaf = match.groups()
    if layer is None:
        return f"{scope}LayerNorm/{leaf}"
    position = int(number or 0) - 2 * int(layer)  # LayerNorm 0 is that of the embeddings
    if position not in (1, 2):
        return name
    return f"{scope}layer_{layer}/{inner}LayerNorm{'' if position == 1 else '_1'}/{leaf}"
