#!/usr/bin/env bash
# Top-1 of a real checkpoint: as it is, fine-tuned, then with half of the FLOPs, then fine-tuned again.
#   benchmarks/accuracy.sh CHECKPOINT DATA EPOCHS FOLDER
set -euo pipefail
checkpoint=$1 data=$2 epochs=$3 folder=$4
name=$(basename "${checkpoint%%-*}")
mkdir -p "$folder"
prunecli --version
tune() { prunecli finetune "$1" --data "$data" --recipe finetune-cifar10 --epochs "$epochs" --resume --json -q -o "$2"; }
top() {
  python -c '
import json, sys
facts = json.load(sys.stdin)
for stage in ("before", "after"):
    print("  {}: top-1 {accuracy:.4f}, FLOPs {flops}, params {params}".format(stage, **facts[stage]))
print("  {seconds} s".format(**facts))'
}
echo "$name: $epochs epochs"
tune "$checkpoint" "$folder/$name-dense.safetensors" | top
prunecli prune "$folder/$name-dense.safetensors" --recipe magnitude-flops50 --data "$data" --json -q -o "$folder/$name-half.safetensors" | top
tune "$folder/$name-half.safetensors" "$folder/$name-tuned.safetensors" | top
