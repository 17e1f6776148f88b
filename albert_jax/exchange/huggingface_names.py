"""Hugging Face's names for our parameters, heads and activations."""

from albert_jax.exchange.weights import Name

_BLOCK = "albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}"


def _dense(parameter: str, tensor: str) -> dict[str, Name]:
    return {f"{parameter}/kernel": Name(f"{tensor}.weight", True), f"{parameter}/bias": Name(f"{tensor}.bias")}


def _norm(parameter: str, tensor: str) -> dict[str, Name]:
    return {f"{parameter}/scale": Name(f"{tensor}.weight"), f"{parameter}/bias": Name(f"{tensor}.bias")}


# transformers, models/albert/modeling_albert.py.
NAMES: dict[str, Name] = {
    **{
        f"embeddings/{kind}_embeddings/embedding": Name(f"albert.embeddings.{kind}_embeddings.weight")
        for kind in ("word", "position", "token_type")
    },
    **_norm("embeddings/LayerNorm", "albert.embeddings.LayerNorm"),
    **_dense("encoder/embedding_hidden_mapping_in", "albert.encoder.embedding_hidden_mapping_in"),
    **{
        parameter: name
        for part in ("query", "key", "value", "dense")
        for parameter, name in _dense(f"encoder/attention/{part}", f"{_BLOCK}.attention.{part}").items()
    },
    **_norm("encoder/attention/LayerNorm", f"{_BLOCK}.attention.LayerNorm"),
    **_dense("encoder/ffn/intermediate", f"{_BLOCK}.ffn"),
    **_dense("encoder/ffn/output", f"{_BLOCK}.ffn_output"),
    **_norm("encoder/ffn/LayerNorm", f"{_BLOCK}.full_layer_layer_norm"),
    **_dense("pooler", "albert.pooler"),
    **_dense("predictions/dense", "predictions.dense"),
    **_norm("predictions/LayerNorm", "predictions.LayerNorm"),
    "predictions/bias": Name("predictions.bias"),
    **_dense("sop_classifier", "sop_classifier.classifier"),
    **_dense("qa_outputs", "qa_outputs"),
}
CLASSIFIERS = {name: _dense(name, "classifier") for name in ("classifier", "token_classifier", "choice_classifier")}
"""The heads that Hugging Face all names `classifier`; the architecture in config.json says which one a folder holds."""

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "AlbertForPreTraining": ("pooler", "predictions", "sop_classifier"),
    "AlbertForMaskedLM": ("predictions",),
    "AlbertModel": ("pooler",),
    "AlbertForSequenceClassification": ("pooler", "classifier"),
    "AlbertForTokenClassification": ("token_classifier",),
    "AlbertForMultipleChoice": ("pooler", "choice_classifier"),
    "AlbertForQuestionAnswering": ("qa_outputs",),
}
"""Hugging Face's classes -> their heads."""

TIED = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}
"""Second name -> first name of one tensor; versions of transformers write the first, the second or both."""
BUFFERS = ("albert.embeddings.position_ids", "albert.embeddings.token_type_ids")

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}
"""Other names for our `gelu_new`."""
