#!/usr/bin/env bash
# The paper's ablations in miniature: what SFT's tasks, the thresholds of its positives, the
# comprehension reward and whole episodes are good for. Under two hours on two cores, two jobs at a time; every part
# resumes when it is run again. RUN: what scripts/mini.sh left (out/mini), whose data, SFT and RL are the ones compared with.
# OUT: where to (out/ablations). SEED, DEVICE: as there.
set -euo pipefail
cd "$(dirname "$0")/.."
export run=${RUN:-out/mini} out=${OUT:-out/ablations} device=${DEVICE:-cpu} seed=${SEED:-0} OMP_NUM_THREADS=${THREADS:-1}
mkdir -p "$out"
job() { secondlook "$1" "$2" --config "mini/$3" --out "$out/$4" --set "seed=$seed" "${@:5}"; }
bench() { # variant, model
  [ -f "$out/$1/geneval/result.json" ] || secondlook eval mini-geneval --samples 2 --model "$2" --out "$out/$1/geneval" --device "$device"
  [ -f "$out/$1/judging/result.json" ] || secondlook eval mini-judging "$run/base/geneval" --model "$2" --out "$out/$1/judging" --device "$device"
}
sft() { # variant, settings
  job train sft sft "$1" --set "runtime.device=$device" --set "runtime.threads=$OMP_NUM_THREADS" --set data="$run/data" "${@:2}"
  bench "$1" "$out/$1/final"
}
rl() { # variant, start, settings
  job train rl rl "$1" --set "runtime.device=$device" --set "runtime.threads=$OMP_NUM_THREADS" --set model="$2" "${@:3}"
  bench "$1" "$out/$1/final"
}
tasks() { # which of SFT's tasks help each other
  sft task-1 --set 'mix=[1, 0, 0]'
  sft task-2-3 --set 'mix=[0, 0.6, 0.4]'
}
rewards() { # what RL is paid for
  bench sft "$run/sft/final"
  bench rl "$run/rl/final"
  [ -f "$out/rl/curve/result.json" ] || secondlook eval mini-curve --samples 2 --model "$run/rl/final" --out "$out/rl/curve" --device "$device"
  rl rl-drawing "$run/sft/final" --set advantage.judging_weight=0
  rl rl-first "$run/sft/final" --set rollout.rounds=1
}
thresholds() { # positives of a judge in doubt, the base itself: the world's own reader knows no doubt
  job data build data doubted --set "device=$device" --set 'rewards=[{kind = "self_judge", model = "mini-base"}]'
  for name in strict loose; do
    thresholds=(--set good_to_draw=0.8 --set good_to_judge=0.7)
    [ "$name" = loose ] && thresholds=(--set good_to_draw=0.5 --set good_to_judge=0.5)
    sft "$name" --set data="$out/doubted" "${thresholds[@]}"
    rl "rl-$name" "$out/$name/final"
  done
}
export -f job bench sft rl tasks rewards thresholds
printf '%s\n' thresholds rewards tasks | xargs -P "${JOBS:-2}" -I{} bash -euo pipefail -c {}
python paper/ablations.py "$out" --out "$out/report"
