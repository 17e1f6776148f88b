"""`albert_config.json` and Hugging Face's `config.json`, which grew out of it: their keys are the fields of `AlbertConfig`."""

from pathlib import Path
from typing import Any

from albert_jax.config import InputError, from_dict, require
from albert_jax.model.albert import AlbertConfig

REQUIRED = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
)
"""Without these the file is refused: Hugging Face's default for each is xxlarge's, and a wrong number of heads loads silently."""
OPTIONAL = (
    "inner_group_num",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
)
MUST_BE: dict[str, tuple[Any, ...]] = {
    "model_type": ("albert",),
    "position_embedding_type": ("absolute",),
    "tie_word_embeddings": (True,),
    "pruned_heads": ({}, None),
    "net_structure_type": (0,),
}
"""Keys under which a network hides that this one is not."""


def read_config(stored: dict[str, Any], path: Path, also_used: tuple[str, ...] = ()) -> tuple[AlbertConfig, list[str]]:
    """The network that a released config describes, and its keys that say nothing of it.

    `num_hidden_groups` becomes `sharing`: 1 all, as many as layers none, else groups.  `hidden_act` is taken as it stands.

    Args:
      stored, path: the file's content, and its path for messages.
      also_used: keys that the caller reads.

    Raises:
      InputError: a missing key, a value of the wrong type, or a network of another kind; the file is named.
    """
    for key, allowed in MUST_BE.items():
        told = f"{path}: {key} is {stored.get(key)!r}; only {' or '.join(map(repr, allowed))} is read"
        require(key not in stored or stored[key] in allowed, told)
    missing = [key for key in REQUIRED if key not in stored]
    require(not missing, f"{path}: no '{', '.join(missing)}' in it; is it an ALBERT's config?")
    values = {key: stored[key] for key in REQUIRED + OPTIONAL if key in stored}
    groups = stored.get("num_hidden_groups", 1)
    require(
        type(groups) is int and groups >= 1, f"{path}: num_hidden_groups must be a positive integer, got {groups!r}"
    )
    if groups == stored["num_hidden_layers"] != 1:
        values["sharing"] = "none"
    elif groups > 1:
        values |= {"sharing": "groups", "num_hidden_groups": groups}
    try:
        config = from_dict(AlbertConfig, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    used = {*REQUIRED, *OPTIONAL, *MUST_BE, *also_used, "num_hidden_groups"}
    return config, [f"config key {key}: {stored[key]!r}" for key in stored if key not in used]


def num_groups(config: AlbertConfig) -> int:
    """`num_hidden_groups` as the released config counts: every layer one when nothing is shared."""
    if config.sharing in ("all", "groups"):
        return config.num_hidden_groups
    return config.num_hidden_layers
