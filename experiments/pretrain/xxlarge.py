"""ALBERT-xxlarge in the paper's setup (arXiv 1909.11942, section 4.1), without dropout like v2, on your own text.

    albert-jax plan experiments/pretrain/xxlarge.py --mesh.data 64
    albert-jax pretrain experiments/pretrain/xxlarge.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

Hardware: 64 H100, one launch per host (docs/multiple-hosts.md).  Estimate by albert-jax plan: 223 M parameters, 14,805 MFLOP per
token, 262 G tokens, 3.9e21 FLOP, 1.8 days at 40 % of 989 TFLOP/s; 17 GB per device.
For 16 GB per device (TPU v3): --train.gradient-accumulation 32 on as many devices.

v1 as released: 1.5 M steps, also without dropout.
    albert-jax pretrain experiments/pretrain/xxlarge.py --train.num-train-steps 1500000
v2 as released: 3 M steps and more data (repository; its warmup was not published):
    albert-jax pretrain experiments/pretrain/xxlarge.py --train.num-train-steps 3000000
The unshared twin, 2,438 M parameters, sharded over the devices:
    albert-jax pretrain experiments/pretrain/xxlarge.py --model.sharing none --mesh.sharding parameters --model.remat dots \
        --train.gradient-accumulation 2
Two phases, 128 and then 512 tokens: the options are in phase_512.py.

Expected (paper, Table 2, dev, fine-tuned): SQuAD 1.1 94.1/88.3, 2.0 88.1/85.1 (F1/EM), MNLI 88.0, SST-2 95.2, RACE 82.3,
average 88.7; v2 as released: average 90.9.  The paper's row has 24 layers.  12 layers have the same average (Table 13) and were
started from the parameters of 6 (footnote 5), here --init-from.  Not run here.
"""

from dataclasses import replace

from albert_jax.model.albert import PRESETS
from albert_jax.pretraining import DataConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig

config = PretrainConfig(
    run_dir="runs/xxlarge",
    model=replace(PRESETS["xxlarge"], dtype="bfloat16"),
    data=DataConfig(source="corpus/*.jsonl.gz", vocab="spiece.model"),
    objective=ObjectiveConfig(max_seq_length=512, max_predictions_per_seq=77),
    optim=OptimConfig(optimizer="lamb", learning_rate=0.00176, num_warmup_steps=3125),
    train=TrainConfig(
        num_train_steps=125_000,
        global_batch_size=4096,
        gradient_accumulation=8,
        eval_every=5000,
        checkpoint_every=5000,
    ),
)
