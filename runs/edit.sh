#!/usr/bin/env bash
# Editing by the same two stages, from the shipped model that draws: edits and scores, SFT, RL, and mini-PIE of all three. By our
# estimate half an hour on a GPU and a night on two cores (not run whole yet); every part resumes. OUT: where to (out/edit). SEED: of everything that is trained (0). DEVICE: cpu.
# PARTS: so many processes build edits, and as many pictures (1). EDITS, PICTURES: how many instructions and prompts.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out/edit} seed=${SEED:-0} device=${DEVICE:-cpu} parts=${PARTS:-1} edits=${EDITS:-48000} pictures=${PICTURES:-4000}
jobs=()
build() { # config, folder, prompts, first seed, settings: begins as many parts as there are processes
  local k
  for k in $(seq "$parts"); do
    OMP_NUM_THREADS=1 secondlook data build --config "configs/mini/$1.toml" --out "$out/data/$2-$k" --set "seed=$((seed * 1000 + $4 + k))" \
      --set "device=$device" --set "n_prompts=$(($3 / parts))" --set 'examples="none"' "${@:5}" &
    jobs+=($!)
  done
}
built() {
  local job
  for job in "${jobs[@]}"; do wait "$job"; done
  jobs=()
}
listed() { # folder, share: the parts as a list, and as many shares
  local names=() shares=() k
  for k in $(seq "$parts"); do names+=("\"$out/data/$1-$k\"") shares+=("$2"); done
  local IFS=,
  echo "${names[*]}" "${shares[*]}"
}
train() { # job, config, folder, settings
  secondlook train "$1" --config "configs/mini/$2.toml" --out "$out/$3" --set "device=$device" --set "seed=$seed" "${@:4}"
}
measure() { # benchmark, folder, model
  [ -f "$out/$2/$1/result.json" ] || secondlook bench "$1" --model "$3" --out "$out/$2/$1" --device "$device"
}
build data pictures "$pictures" 0
build edit_data edits "$edits" 0
built
read -r names_pictures share_pictures < <(listed pictures 0.3)
read -r names_edits share_edits < <(listed edits 0.7)
data=(--set "data=[$names_pictures,$names_edits]" --set "shares=[$share_pictures,$share_edits]")
# drawing edits, and verdicts on single pictures and edits; then all tasks with their chains; then those also on the model's own edits
train sft edit_sft learn "${data[@]}"
chains=(--set 'mix=[0.35, 0.35, 0.3]' --set judge_context=3 --set lr=5e-4 --set min_lr=3e-5)
train sft edit_sft chains "${data[@]}" "${chains[@]}" --set model="$out/learn/final" --set steps=300
own="{kind = \"model\", model = \"$out/chains/final\", images = 3}"
build edit_data own "$((edits / 4))" 500 --set "generators=[{kind = \"render\", model = \"mini\", images = 2}, $own]"
built
read -r names_own share_own < <(listed own 0.7)
data=(--set "data=[$names_pictures,$names_edits,$names_own]" --set "shares=[$share_pictures,$share_edits,$share_own]")
train sft edit_sft sft "${data[@]}" "${chains[@]}" --set model="$out/chains/final" --set steps=300
train rl edit_rl rl --set model="$out/sft/final"
measure editing base mini
measure editing sft "$out/sft/final"
measure editing rl "$out/rl/final"
measure geneval rl "$out/rl/final"
