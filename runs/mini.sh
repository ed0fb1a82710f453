#!/usr/bin/env bash
# The two stages in miniature, from the shipped base: pictures and scores, SFT, GRPO, a control that goes on with SFT instead, and a report.
# Every stage resumes when it is run again (DEVICE=cuda trains on a GPU).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out/mini} device=${DEVICE:-cpu}
job() { secondlook "$1" "$2" --config "configs/mini/$3.toml" --out "$out/$4" --set "device=$device" "${@:5}"; }
job data sample data data
job train sft sft sft --set data="$out/data"
job train grpo grpo rl --set model="$out/sft/final"
job train sft sft control --set data="$out/data" --set model="$out/sft/final" --set seed=1
for name in base sft control rl; do
  model=$out/$name/final
  [ "$name" = base ] && model=mini-base
  secondlook bench geneval --model "$model" --out "$out/$name/geneval" --device "$device"
  secondlook bench curve --model "$model" --out "$out/$name/curve" --device "$device"
done
secondlook bench compare base="$out/base" sft="$out/sft" control="$out/control" rl="$out/rl" --out "$out/report"
