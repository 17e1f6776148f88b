"""ALBERT-large in the paper's setup (arXiv 1909.11942, section 4.1), without dropout like v2, on your own text.

    albert-jax plan experiments/pretrain/large.py --mesh.data 16
    albert-jax pretrain experiments/pretrain/large.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

Hardware: 16 H100, one launch per host (docs/multiple-hosts.md).  Estimate by albert-jax plan: 17.8 M parameters, 1,967 MFLOP per
token, 262 G tokens, 5.2e20 FLOP, 22.6 h at 40 % of 989 TFLOP/s; 13 GB per device.
For 16 GB per device (TPU v3): --train.gradient-accumulation 32 on as many devices.

v1 as released: with dropout.
    albert-jax pretrain experiments/pretrain/large.py --model.hidden-dropout-prob 0.1 --model.attention-probs-dropout-prob 0.1
v2 as released: 3 M steps and more data (repository; its warmup was not published):
    albert-jax pretrain experiments/pretrain/large.py --train.num-train-steps 3000000
The unshared twin, 308 M parameters, sharded over the devices:
    albert-jax pretrain experiments/pretrain/large.py --model.sharing none --mesh.sharding parameters --model.remat dots \
        --train.gradient-accumulation 2
Two phases, 128 and then 512 tokens: the options are in phase_512.py.

Expected (paper, Table 2, dev, fine-tuned): SQuAD 1.1 90.6/83.9, 2.0 82.3/79.4 (F1/EM), MNLI 83.5, SST-2 91.7, RACE 68.5,
average 82.4; v2 as released: average 85.7.  Not run here.
"""

from dataclasses import replace

from albert_jax.model.albert import PRESETS
from albert_jax.pretraining import DataConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig

config = PretrainConfig(
    run_dir="runs/large",
    model=replace(PRESETS["large"], dtype="bfloat16"),
    data=DataConfig(source="corpus/*.jsonl.gz", vocab="spiece.model"),
    objective=ObjectiveConfig(max_seq_length=512, max_predictions_per_seq=77),
    optim=OptimConfig(optimizer="lamb", learning_rate=0.00176, num_warmup_steps=3125),
    train=TrainConfig(
        num_train_steps=125_000,
        global_batch_size=4096,
        gradient_accumulation=16,
        eval_every=5000,
        checkpoint_every=5000,
    ),
)
