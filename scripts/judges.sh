#!/usr/bin/env bash
# The model as evaluator of another generator, and as the reward of that generator's RL (the paper's table 3 and figure 5a), in
# miniature. The other generator is smaller, with an image tokenizer and weights of its own, and can draw and nothing else.
# Its pictures are judged by the base, after SFT and after RL; then each of these, and the world's reader, rewards its RL.
# About an hour on two cores; every part resumes when it is run again.
# RUN: what scripts/mini.sh left (out/mini). OUT: where to (out/judges). DEVICE as there.
set -euo pipefail
cd "$(dirname "$0")/.."
run=${RUN:-out/mini} out=${OUT:-out/judges} device=${DEVICE:-cpu} threads=${THREADS:-2}
export OMP_NUM_THREADS=$threads
train() {
  secondlook train "$1" --config "mini/$2" --out "$out/$3" --set "runtime.device=$device" --set "runtime.threads=$threads" "${@:4}"
}
measure() { [ -f "$out/$1/geneval/result.json" ] || secondlook eval mini-geneval --rounds 1 --model "$2" --out "$out/$1/geneval" --device "$device"; }
train tokenizer tokenizer tokenizer --set seed=7
train vision vision vision --set seed=7 --set steps=60 # it never looks; its classes want an encoder all the same
train base other other --set tokenizer="$out/tokenizer/final" --set vision="$out/vision/final"
measure other "$out/other/final"
others=()
for name in base sft rl; do
  model=$run/$name/final
  [ "$name" = base ] && model=mini-base
  [ -f "$out/judging-$name/result.json" ] ||
    secondlook eval mini-judging "$out/other/geneval" --model "$model" --out "$out/judging-$name" --device "$device" "${others[@]}"
  others+=(--over "$out/judging-$name")
done
reward() { # name, judges
  train rl other_rl "$1" --set model="$out/other/final" --set "rewards=$2"
  measure "$1" "$out/$1/final"
}
reward by-base '[{kind = "self_judge", model = "mini-base"}]'
reward by-sft "[{kind = \"self_judge\", model = \"$run/sft/final\"}]"
reward by-rl "[{kind = \"self_judge\", model = \"$run/rl/final\"}]"
reward by-reader '[{kind = "mini"}]'
python paper/compare.py other="$out/other" by-base="$out/by-base" by-sft="$out/by-sft" by-rl="$out/by-rl" by-reader="$out/by-reader" \
  --out "$out/report" --notes "A smaller generator after RL with different judges as its reward; the truth is the world's reader."
