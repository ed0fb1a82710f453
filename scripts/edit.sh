#!/usr/bin/env bash
# Editing by the same two stages, from the shipped model that draws: edits and scores, SFT, RL, and mini-PIE of all three. By our
# estimate half an hour on a GPU and six hours on two cores (at full length not run yet); every part resumes. OUT: where to (out/edit).
# SEED: of everything that is trained (0). DEVICE: cpu. EDITS, PICTURES: how many instructions and prompts. PARTS: processes that
# build data (2). RANKS: processes that train (2 on a CPU, of one thread each, which is faster than one of two; else 1).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out/edit} seed=${SEED:-0} device=${DEVICE:-cpu} parts=${PARTS:-2} edits=${EDITS:-48000} pictures=${PICTURES:-4000}
if [ "$device" = cpu ]; then ranks=${RANKS:-2} workers=0; else ranks=${RANKS:-1} workers=$parts; fi
many() { # how many processes, two words of a command, its options
  OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node "$1" -m secondlook "$2" "$3" --set "seed=$seed" \
    "${@:4}"
}
build() { # config, folder, prompts, settings
  [ -f "$out/data/$2/manifest.json" ] || many "$parts" data build --config "mini/$1" --out "$out/data/$2" \
    --set "device=$device" --set "n_prompts=$3" --set 'examples="none"' "${@:4}"
}
sft() { # folder, settings
  many "$ranks" train sft --config mini/edit_sft --out "$out/$1" --set "runtime.device=$device" \
    --set runtime.threads=1 --set "runtime.dataloader_workers=$workers" "${@:2}"
}
measure() { # benchmark, folder, model
  [ -f "$out/$2/$1/result.json" ] || secondlook eval "mini-$1" --model "$3" --out "$out/$2/$1" --device "$device"
}
build data pictures "$pictures"
build edit_data edits "$edits"
# drawing edits, and verdicts on single pictures and edits; then all tasks with their chains; then those also on the model's own edits
chains=(--set 'mix=[0.35, 0.35, 0.3]' --set judge_context=3 --set optim.lr=5e-4 --set optim.min_lr=3e-5 --set steps=300)
sft learn --set "data=[\"$out/data/pictures\", \"$out/data/edits\"]"
sft chains --set "data=[\"$out/data/pictures\", \"$out/data/edits\"]" --set model="$out/learn/final" "${chains[@]}"
build edit_data own "$((edits / 4))" --set "seed=$((seed + 1000))" \
  --set "generators=[{kind = \"render\", model = \"mini\", images = 2}, {kind = \"model\", model = \"$out/chains/final\", images = 3}]"
sft sft --set "data=[\"$out/data/pictures\", \"$out/data/edits\", \"$out/data/own\"]" --set 'data_weights=[0.2, 0.3, 0.5]' \
  --set model="$out/chains/final" "${chains[@]}"
many "$ranks" train rl --config mini/edit_rl --out "$out/rl" --set "runtime.device=$device" --set runtime.threads=1 \
  --set model="$out/sft/final"
measure pie base mini
measure pie sft "$out/sft/final"
measure pie rl "$out/rl/final"
measure geneval rl "$out/rl/final"
