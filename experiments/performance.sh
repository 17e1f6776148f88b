#!/usr/bin/env bash
# The targets of speed on one NVIDIA GPU, most telling first, in about nine minutes; needs jax, flax and optax, and for what is
# beside Hugging Face torch and transformers.  JSON and tables are written to FOLDER, the summary is printed last.
#
#   bash experiments/performance.sh FOLDER [further options of albert-jax bench, for all]
#
# On a CPU, to try the script: bash experiments/performance.sh /tmp/found --dtype float32 --attention xla --batch-size 2 \
#   --length 32 --model.num-hidden-layers 2 --model.hidden-size 64 --model.num-attention-heads 4 --model.intermediate-size 128
set -u
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch wants memory beside
cd "$(dirname "$0")/.."
folder=$1
shift
mkdir -p "$folder"

run() { # NAME SIZE options
  local name=$1 size=$2
  shift 2
  timeout 150 "${PYTHON:-python3}" -m albert_jax bench "$size" --dtype bfloat16 --attention cudnn --rounds 3 --json "$folder/$name.json" \
    "$@" >"$folder/$name.txt" 2>"$folder/$name.err" || echo "$name: exit $?, $(tail -1 "$folder/$name.err" | cut -c1-120)"
}

further=("$@")
run base-512 base --batch-size 128 --peer huggingface-compiled "${further[@]}"
run xxlarge-512 xxlarge --batch-size 32 "${further[@]}"
run xlarge-512 xlarge --batch-size 64 "${further[@]}"
run large-512 large --batch-size 128 "${further[@]}"
run base-512-xla base --batch-size 128 --attention xla "${further[@]}"
run base-512-unroll-12 base --batch-size 128 --unroll 12 "${further[@]}"
run base-512-none base --batch-size 128 --remat none "${further[@]}"
run base-128 base --batch-size 512 --length 128 "${further[@]}"
run base-512-eager base --batch-size 128 --peer huggingface "${further[@]}"
run inference-64-512 base --work inference --batch-size 64 --peer huggingface-compiled "${further[@]}"
run inference-1-128 base --work inference --batch-size 1 --length 128 --peer huggingface-compiled "${further[@]}"
run xxlarge-128 xxlarge --batch-size 128 --length 128 "${further[@]}"

"${PYTHON:-python3}" - "$folder" <<'TABLE'
import json
import sys
from pathlib import Path

print("| | tokens/s | MFU of a product | of the data sheet | memory, GB | compile, s | time to the peer's |\n|---|---|---|---|---|---|---|")
for file in sorted(Path(sys.argv[1]).glob("*.json"), key=lambda file: file.stat().st_mtime):
    found = json.loads(file.read_text())
    sheet = f"{found['mfu_of_peak']:.1%}" if found["mfu_of_peak"] else "-"
    ratio = f"{found['ratio']:.3f}" if "ratio" in found else ""
    print(f"| {file.stem} | {found['tokens_per_second']:,.0f} | {found['mfu']:.1%} | {sheet} | {found['memory'] / 1e9:.3g} | {found['compile_seconds']:.3g} | {ratio} |")
TABLE
