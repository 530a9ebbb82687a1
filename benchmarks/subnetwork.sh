#!/usr/bin/env bash
# Top-1 of masks on random weights, each layer's of one size (the recipe), beside training from the same weights.
#   benchmarks/subnetwork.sh DATA EPOCHS LR FOLDER [MODEL]      LR of the masks: 50 in the paper, for a hundred epochs
set -euo pipefail
data=$1 epochs=$2 lr=$3 folder=$4 model=${5:-conv4}
few=(--data "$data" --set train.epochs="$epochs" --set train.batch_size=64 --set train.validation=0.1 --json -q)
mkdir -p "$folder"
top() {
  python -c '
import json, sys
facts = json.load(sys.stdin)
before, after = facts["before"], facts["after"]
print("  top-1 {:.4f} before, {:.4f} after".format(before["accuracy"], after["accuracy"]))
print("  {:.2%} of the weights are zero, {} s".format(after["sparsity"], facts["seconds"]))'
}
prunecli --version
echo "$model, masks on random weights"
prunecli prune "$model" --recipe gumbel-paper --set method.lr="$lr" "${few[@]}" -o "$folder/masks.safetensors" | top
echo "$model, trained from the same weights"
prunecli finetune "$model" --set train.lr=0.002 --set train.warmup_epochs=1 "${few[@]}" -o "$folder/trained.safetensors" | top
