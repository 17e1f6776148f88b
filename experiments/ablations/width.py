"""How wide should the one layer be?

    albert-jax ablate experiments/ablations/width.py --scale tiny --seeds 5

Paper (Table 12, appendix A.2): with three layers, H = 1024, 2048, 4096 and 6144 reach 71.2, 74.6, 76.3 and 74.0; wider helps until
the model overfits.  The head size is constant, except in H = 2048 at the scale `paper`, as in the paper.  (The paper prints 225 M parameters for
H = 4096, and 235 M for the same model elsewhere; the released code has 223 M.)
Results: not run yet.
"""

from albert_jax.ablation import Ablation, Row, at


def width(paper: int, tiny: int, small: int, head: int, millions: int, average: float) -> Row:
    sizes = {"tiny": (tiny, tiny // 32), "small": (small, small // 64), "paper": (paper, paper // head)}
    return Row(
        {
            "model.hidden_size": at(**{scale: hidden for scale, (hidden, _) in sizes.items()}),
            "model.num_attention_heads": at(**{scale: heads for scale, (_, heads) in sizes.items()}),
            "model.intermediate_size": at(**{scale: 4 * hidden for scale, (hidden, _) in sizes.items()}),
        },
        {"parameters (M)": millions, "average": average},
    )


THREE = {"model.num_hidden_layers": 3}

ablation = Ablation(
    rows={
        "H x 1": width(1024, 32, 128, 64, 18, 71.2),
        "H x 2": width(2048, 64, 256, 128, 60, 74.6),
        "H x 4": width(4096, 128, 512, 64, 225, 76.3),
        "H x 6": width(6144, 192, 768, 64, 499, 74.0),
    },
    base={"tiny": THREE, "small": THREE, "paper": THREE},
)
