#!/usr/bin/env bash
# The two stages in miniature, from the shipped base: pictures and scores, SFT, RL, a control that goes on with SFT for as many
# seconds as RL took, and a report. Less than an hour on two cores; every stage resumes when it is run again.
# OUT: where to (out/mini). SEED: of everything that is trained (0). THREADS: how many (2). DEVICE=cuda trains on a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out/mini} device=${DEVICE:-cpu} seed=${SEED:-0} threads=${THREADS:-2}
export OMP_NUM_THREADS=$threads
job() { secondlook "$1" "$2" --config "mini/$3" --out "$out/$4" --set "seed=$seed" "${@:5}"; }
train() { job train "$1" "$1" "$2" --set "runtime.device=$device" --set "runtime.threads=$threads" "${@:3}"; }
bench() { # what has been measured is not measured again
  local to="$out/$2/$1"
  [ -f "$to/result.json" ] || secondlook eval "mini-$1" "${@:4}" --model "$3" --out "$to" --device "$device"
}
seconds() { # a step of a run, the median over its log (other work on the machine may have slowed some)
  python -c 'import json, statistics, sys; rows = [json.loads(line) for line in open(sys.argv[1])]
print(statistics.median(row["seconds"] for row in rows) / rows[0]["step"], rows[-1]["step"])' "$1"
}
job data build data data --set "device=$device"
train sft sft --set data="$out/data"
train rl rl --set model="$out/sft/final"
read -r of_rl taken <<<"$(seconds "$out/rl/metrics.jsonl")"
read -r of_sft _ <<<"$(seconds "$out/sft/metrics.jsonl")"
steps=$(python -c "print(round($of_rl * $taken / $of_sft))")
train sft control --set data="$out/data" --set model="$out/sft/final" --set "steps=$steps" --set "seed=$((seed + 1000))"
for name in base sft control rl; do
  model=$out/$name/final
  [ "$name" = base ] && model=mini-base
  bench geneval "$name" "$model"
  bench judging "$name" "$model" "$out/base/geneval"
  bench curve "$name" "$model"
done
secondlook eval mini-audit "$out/rl/geneval" --out "$out/audit" --device "$device"
python paper/compare.py base="$out/base" sft="$out/sft" control="$out/control" rl="$out/rl" --out "$out/report"
