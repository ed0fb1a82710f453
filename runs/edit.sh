#!/usr/bin/env bash
# Editing by the same two stages, from the shipped model that draws: edits and scores, SFT, RL, and mini-PIE of all three. By our
# estimate two hours on two cores, with two processes of one thread each (faster than one of two); every part resumes.
# OUT: where to (out/edit). SEED: of everything that is trained (0). RANKS: processes of a training (2).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out/edit} seed=${SEED:-0} ranks=${RANKS:-2}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
train() { # job, config, folder, settings
  torchrun --standalone --nproc-per-node "$ranks" -m secondlook.cli train "$1" --config "configs/mini/$2.toml" --out "$out/$3" \
    --set threads=1 --set "seed=$seed" "${@:4}"
}
measure() { # benchmark, folder, model
  [ -f "$out/$2/$1/result.json" ] || secondlook bench "$1" --model "$3" --out "$out/$2/$1"
}
secondlook data build --config configs/mini/data.toml --out "$out/pictures" --set "seed=$seed"
secondlook data build --config configs/mini/edit_data.toml --out "$out/edits" --set "seed=$seed"
data="data=[\"$out/pictures\", \"$out/edits\"]"
# drawing edits, and verdicts on single pictures and edits; then all tasks with their chains
train sft edit_sft learn --set "$data"
train sft edit_sft sft --set "$data" --set model="$out/learn/final" --set 'mix=[0.3, 0.4, 0.3]' --set judge_context=3 \
  --set steps=200 --set batch=48 --set min_lr=3e-5
train rl edit_rl rl --set model="$out/sft/final"
measure editing base mini
measure editing sft "$out/sft/final"
measure editing rl "$out/rl/final"
measure geneval rl "$out/rl/final"
