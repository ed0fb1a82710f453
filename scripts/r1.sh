#!/usr/bin/env bash
# The paper from nothing to its table: prompts, pictures, stage 1, sanity pairs, stage 2, editing, benchmarks of base, SFT and RL, one report.
#   MODEL=deepseek-ai/Janus-Pro-7B scripts/r1.sh       on a node with GPUs, beside the two servers of src/secondlook/recipes/README.md
#   TINY=1 scripts/r1.sh                                the same script whole in minutes on two cores, with random weights and a toy judge
# Every stage resumes when the script is run again. What each file that a recipe names is, and where it comes from: src/secondlook/recipes/README.md.
# ALGORITHM: grpo or ppo. RANKS: processes (gpu: one a GPU). JUDGE, WRITER: the servers' addresses and models. EDITS=0: without editing.
# BENCHMARKS, EDIT_BENCHMARKS: which, of `secondlook eval list`; those whose files are not fetched lie in FILES (their page says where).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

out=${OUT:-out/r1} algorithm=${ALGORITHM:-grpo}
if [ "${TINY:-0}" = 1 ]; then
  out=${OUT:-out/tiny-r1}
  python scripts/tiny/files.py "$out/tiny"
  PORT=${PORT:-8765}
  python scripts/tiny/judge.py "$PORT" & judge=$!
  trap 'kill $judge 2> /dev/null || true' EXIT
  source scripts/tiny/settings.sh
else
  source scripts/r1_settings.sh
fi

data() { scripts/ranks.sh data build --config "$1" --out "$out/$1" "${@:2}"; }
train() { scripts/ranks.sh train "$1" --config "$size/$2" --out "$out/$3" "${@:4}" "${train_settings[@]}"; }
measure() { # name, model, benchmarks: what has a result is not measured again
  for benchmark in $3; do
    local to="$out/benchmarks/$1/$benchmark"
    local scorer=()
    case $benchmark in
      compbench | dsg | dpg | gedit) scorer=("${answerer_settings[@]}") ;;
      pie) scorer=("${pie_settings[@]}") ;;
    esac
    [ -f "$to/result.json" ] ||
      scripts/ranks.sh eval "$benchmark" --model "$2" --data "$files" --out "$to" "${bench_settings[@]}" "${scorer[@]}"
  done
}

echo "1. does it fit?"
for stage in sft "$algorithm"; do
  secondlook plan --gpus "$gpus" --config "$size/$stage"
done
python benchmarks/simulate.py "$size/$algorithm" --ranks "$gpus" --memory "$memory" "${simulate_settings[@]}"

echo "2. prompts and pictures"
[ -f "$seeds" ] || secondlook data fetch --out "$files"
data data "${data_settings[@]}"

echo "3. stage 1"
train sft sft sft --set "model=$base" --set "data=$out/data" "${sft_settings[@]}"

echo "4. sanity pairs: look at $out/sanity_pairs/sanity_pairs.html, and take wrong lines out of sanity_pairs.jsonl"
[ -f "$out/sanity_pairs/sanity_pairs.jsonl" ] || secondlook data sanity-pairs "$out/data" --out "$out/sanity_pairs" "${sanity_settings[@]}"

echo "5. stage 2"
train rl "$algorithm" "$algorithm" --set "model=$out/sft/final" --set "prompts=$out/data/prompts.jsonl" \
  --set "sanity_pairs=$out/sanity_pairs/sanity_pairs.jsonl" "${rl_settings[@]}"

compared=(base="$out/benchmarks/base" sft="$out/benchmarks/sft" "$algorithm=$out/benchmarks/$algorithm")
if [ "${EDITS:-1}" = 1 ]; then
  echo "6. editing"
  [ -f "$out/edits/edits.jsonl" ] || secondlook data edits "$out/data" --out "$out/edits" "${writer[@]}"
  data edit_data "${edit_data_settings[@]}"
  train sft edit_sft edit_sft --set "model=$out/$algorithm/final" --set "data=$out/edit_data" "${sft_settings[@]}"
  [ -f "$out/edit_sanity_pairs/sanity_pairs.jsonl" ] ||
    secondlook data sanity-pairs "$out/edit_data" --out "$out/edit_sanity_pairs" "${sanity_settings[@]}"
  train rl edit_grpo edit_grpo --set "model=$out/edit_sft/final" --set "prompts=$out/edits/edits.jsonl" \
    --set "sanity_pairs=$out/edit_sanity_pairs/sanity_pairs.jsonl" "${rl_settings[@]}"
  compared+=(edit-sft="$out/benchmarks/edit-sft" edit-grpo="$out/benchmarks/edit-grpo")
fi

echo "7. benchmarks"
measure base "$base" "$benchmarks"
measure sft "$out/sft/final" "$benchmarks"
measure "$algorithm" "$out/$algorithm/final" "$benchmarks"
if [ "${EDITS:-1}" = 1 ]; then
  measure edit-sft "$out/edit_sft/final" "$edit_benchmarks"
  measure edit-grpo "$out/edit_grpo/final" "$edit_benchmarks"
fi
secondlook eval table "${compared[@]}" --out "$out/report"
