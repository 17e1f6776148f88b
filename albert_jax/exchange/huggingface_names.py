"""What Hugging Face calls our parameters, heads and activations: the table, apart from the files it is used on."""

from albert_jax.exchange.weights import Name

_BLOCK = "albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}"


def _dense(ours: str, theirs: str) -> dict[str, Name]:
    return {f"{ours}/kernel": Name(f"{theirs}.weight", True), f"{ours}/bias": Name(f"{theirs}.bias")}


def _norm(ours: str, theirs: str) -> dict[str, Name]:
    return {f"{ours}/scale": Name(f"{theirs}.weight"), f"{ours}/bias": Name(f"{theirs}.bias")}


# transformers, models/albert/modeling_albert.py.  All three classifiers bear one name there: architectures tells them apart.
NAMES: dict[str, Name] = {
    **{
        f"embeddings/{kind}_embeddings/embedding": Name(f"albert.embeddings.{kind}_embeddings.weight")
        for kind in ("word", "position", "token_type")
    },
    **_norm("embeddings/LayerNorm", "albert.embeddings.LayerNorm"),
    **_dense("encoder/embedding_hidden_mapping_in", "albert.encoder.embedding_hidden_mapping_in"),
    **{
        ours: name
        for part in ("query", "key", "value", "dense")
        for ours, name in _dense(f"encoder/attention/{part}", f"{_BLOCK}.attention.{part}").items()
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

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "AlbertForPreTraining": ("pooler", "predictions", "sop_classifier"),
    "AlbertForMaskedLM": ("predictions",),
    "AlbertModel": ("pooler",),
    "AlbertForSequenceClassification": ("pooler", "classifier"),
    "AlbertForTokenClassification": ("token_classifier",),
    "AlbertForMultipleChoice": ("pooler", "choice_classifier"),
    "AlbertForQuestionAnswering": ("qa_outputs",),
}
"""Hugging Face's classes and the heads that make them."""

TIED = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}
"""Second names of one tensor; some versions write both, some either."""
BUFFERS = ("albert.embeddings.position_ids", "albert.embeddings.token_type_ids")

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}
"""Other names there of what is `gelu_new` here."""
