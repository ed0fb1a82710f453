#!/usr/bin/env bash
# scripts/mini.sh for three seeds, two at a time with a core each (faster than one after another with both), and their headline
# rows side by side. About two and a half hours on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
export out=${OUT:-out/mini_seeds} THREADS=${THREADS:-1}
printf '%s\n' 0 1 2 | xargs -P 2 -I{} env OUT="$out/seed-{}" SEED={} scripts/mini.sh
python paper/seeds.py "$out"/seed-{0,1,2}/report --out "$out/report"
