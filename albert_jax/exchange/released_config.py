"""Read `albert_config.json` and Hugging Face's `config.json`, whose keys are mostly the fields of `AlbertConfig`."""

from pathlib import Path
from typing import Any

from albert_jax.config import InputError, from_dict
from albert_jax.model.albert import AlbertConfig

REQUIRED = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
"""A file must have these keys: Hugging Face's defaults are xxlarge's, and a wrong number of heads would load silently."""
OPTIONAL = (
    "hidden_act",  # if it is missing, the tanh form of GELU, as in both libraries
    "inner_group_num",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
)
ACCEPTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("albert",),
    "position_embedding_type": ("absolute",),
    "tie_word_embeddings": (True,),
    "pruned_heads": ({}, None),
    "net_structure_type": (0,),
}
"""Key -> the values that we implement; other values mean a different architecture."""


def read_config(stored: dict[str, Any], path: Path, other_keys: tuple[str, ...] = ()) -> tuple[AlbertConfig, list[str]]:
    """Convert the content of a released config file.

    The result has sharing 'groups' with the file's `num_hidden_groups`; `reshare.follow` finds the strategy for it.
    `hidden_act` is copied unchanged.

    Args:
      stored: the content of the file.
      path: for error messages.
      other_keys: keys that the caller reads itself.

    Returns:
      The config, and the keys of the file that nothing reads.

    Raises:
      InputError: a missing key, a value of the wrong type, or an architecture that we do not implement.
    """
    for key, accepted in ACCEPTED.items():
        if key in stored and stored[key] not in accepted:
            raise InputError(f"{path}: {key} is {stored[key]!r}; only {' or '.join(map(repr, accepted))} is supported")
    if missing := [key for key in REQUIRED if key not in stored]:
        raise InputError(f"{path}: missing '{', '.join(missing)}'; is it the config of an ALBERT?")
    groups = stored.get("num_hidden_groups", 1)
    if type(groups) is not int or groups < 1:
        raise InputError(f"{path}: num_hidden_groups must be a positive integer, got {groups!r}")
    values = {key: stored[key] for key in REQUIRED + OPTIONAL if key in stored}
    try:
        config = from_dict(AlbertConfig, values | {"sharing": "groups", "num_hidden_groups": groups})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    used = {*REQUIRED, *OPTIONAL, *ACCEPTED, *other_keys, "num_hidden_groups"}
    return config, [f"config key {key}: {stored[key]!r}" for key in stored if key not in used]
