#!/usr/bin/env bash
# runs/mini.sh for three seeds, and their headline rows side by side. About three hours on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out/mini_seeds}
for seed in 0 1 2; do OUT=$out/seed-$seed SEED=$seed runs/mini.sh; done
secondlook bench seeds "$out"/seed-{0,1,2}/report --out "$out/report"
