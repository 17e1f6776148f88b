"""Script that wrote tests/golden/huggingface, with torch 2.13.0 and transformers 5.23.0: `python make_huggingface.py FOLDER`.

Each case is a folder that `save_pretrained` wrote, with random weights; outputs.safetensors holds the model's outputs.
The models are as small as the case allows.  Outputs of half-precision models are computed in float32, as we read them.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SMALL: dict[str, Any] = dict(
    vocab_size=40, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2
)
SMALL |= dict(intermediate_size=24, max_position_embeddings=16, classifier_dropout_prob=0.0)
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "shared": ({}, "AlbertForPreTraining"),
    "gelu": (dict(hidden_act="gelu"), "AlbertForPreTraining"),
    "groups": (dict(num_hidden_layers=5, num_hidden_groups=2), "AlbertForPreTraining"),
    "inner": (dict(num_hidden_layers=4, num_hidden_groups=2, inner_group_num=2), "AlbertForPreTraining"),
    "unshared": (dict(num_hidden_groups=3), "AlbertForPreTraining"),
    "rounded": (dict(num_hidden_layers=18, num_hidden_groups=14, hidden_size=8), "AlbertForPreTraining"),
    "wide_embeddings": (dict(embedding_size=16), "AlbertForPreTraining"),
    "head_of_128": (dict(hidden_size=256), "AlbertForPreTraining"),
    "masked_lm": ({}, "AlbertForMaskedLM"),
    "bare": ({}, "AlbertModel"),
    "sequence": (dict(num_labels=3), "AlbertForSequenceClassification"),
    "token": (dict(num_labels=5), "AlbertForTokenClassification"),
    "choice": ({}, "AlbertForMultipleChoice"),
    "answers": ({}, "AlbertForQuestionAnswering"),
}


def inputs() -> dict[str, np.ndarray]:
    """Three rows of twelve tokens with two segments each; the second and third are padded."""
    positions, ends = np.arange(12)[None], np.array([[12], [9], [4]])
    ids = np.random.default_rng(7).integers(5, 40, (3, 12))
    return {"input_ids": ids, "attention_mask": (positions < ends) * 1, "token_type_ids": (positions >= ends // 2) * 1}


def main(target: Path) -> None:
    """Write all cases."""
    import torch
    import transformers

    for name, (changes, architecture) in CASES.items():
        torch.manual_seed(sum(map(ord, name)))
        model = getattr(transformers, architecture)(transformers.AlbertConfig(**SMALL | changes)).eval()
        for parameter in model.parameters():  # no parameter is 0 or 1, so that no term can be omitted unnoticed
            torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 0.3, 0.3 if name != "head_of_128" else 0.1)
        if name == "head_of_128":
            model.bfloat16()
        model.save_pretrained(target / name)
        model.float()
        batch = {key: torch.tensor(value) for key, value in inputs().items()}
        if architecture == "AlbertForMultipleChoice":
            batch = {key: value[None] for key, value in batch.items()}
        with torch.no_grad():
            outputs = model(**batch, output_hidden_states=True)
        arrays = {key: value.numpy() for key, value in outputs.items() if isinstance(value, torch.Tensor)}
        arrays["last_hidden_state"] = outputs.hidden_states[-1].numpy()
        save_file(
            {key: np.ascontiguousarray(value) for key, value in arrays.items()}, target / name / "outputs.safetensors"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
