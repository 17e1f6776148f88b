"""ALBERT-xlarge in the paper's setup (arXiv 1909.11942, section 4.1), without dropout like v2, on your own text.

    albert-jax plan experiments/pretrain/xlarge.py --mesh.data 32
    albert-jax pretrain experiments/pretrain/xlarge.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

Hardware: 32 H100, one launch per host (docs/multiple-hosts.md).  Estimate by albert-jax plan: 59.0 M parameters, 7,555 MFLOP per
token, 262 G tokens, 2.0e21 FLOP, 1.8 days at 40 % of 989 TFLOP/s; 10 GB per device.
This also fits 16 GB per device (TPU v3).

v1 as released: with dropout.
    albert-jax pretrain experiments/pretrain/xlarge.py --model.hidden-dropout-prob 0.1 --model.attention-probs-dropout-prob 0.1
v2 as released: 3 M steps and more data (repository; its warmup was not published):
    albert-jax pretrain experiments/pretrain/xlarge.py --train.num-train-steps 3000000
The unshared twin, 1,217 M parameters, sharded over the devices:
    albert-jax pretrain experiments/pretrain/xlarge.py --model.sharing none --mesh.sharding parameters --model.remat dots \
        --train.gradient-accumulation 2
Two phases, 128 and then 512 tokens: the options are in phase_512.py.

Expected (paper, Table 2, dev, fine-tuned): SQuAD 1.1 92.5/86.1, 2.0 86.1/83.1 (F1/EM), MNLI 86.4, SST-2 92.4, RACE 74.8,
average 85.5; v2 as released: average 87.9.  Not run here.
"""

from dataclasses import replace

from albert_jax.model.albert import PRESETS
from albert_jax.pretraining import DataConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig

config = PretrainConfig(
    run_dir="runs/xlarge",
    model=replace(PRESETS["xlarge"], dtype="bfloat16"),
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
