"""How much of the cost of sharing do a few parameters per pass recover?

    albert-jax ablate experiments/ablations/per_pass.py --scale tiny --seeds 5 --tune optim.learning_rate=2e-3,5e-3,1e-2

Not in the paper.  LoRA per pass is from Relaxed Recursive Transformers (arXiv 2410.20672), which converts trained models; here all
rows are trained from the beginning.
Results: at `tiny` (three seeds, tuned rates, so no claim), own gains recover 82 % of the gap in masked-LM loss between all shared and
not shared with 8 parameters, embeddings injected 80 %, layer weights 72 %, LoRA of rank 16, 4 and 1 67 %, 40 % and 35 %, own
LayerNorms and own vectors nothing (experiments/LOG.md).
"""

from albert_jax.ablation import Ablation, Row


def lora(rank: int) -> Row:
    return Row({"model.per_pass": "lora", "model.per_pass.rank": rank})


ablation = Ablation(
    rows={
        "all shared": Row(),
        "own LayerNorms": Row({"model.per_pass": "norm"}),
        "own gains": Row({"model.per_pass": "scale"}),
        "own vector": Row({"model.per_pass": "embedding"}),
        "LoRA, rank 1": lora(1),
        "LoRA, rank 4": lora(4),
        "LoRA, rank 16": lora(16),
        "embeddings injected": Row({"model.inject": True}),
        "layer weights": Row({"model.layer_weights": True}),
        "not shared": Row({"model.sharing": "none"}),
    },
)
