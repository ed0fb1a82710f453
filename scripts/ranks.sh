#!/usr/bin/env bash
# A job on every GPU of this machine, started again where a rank dies (it resumes from the last state):
#   scripts/ranks.sh train rl --config 7b/grpo --out out/grpo
# On several machines, on each of them (NODES how many, HEAD the first one's address):
#   NODES=4 HEAD=10.0.0.1 scripts/ranks.sh train rl --config 7b/grpo --out /shared/grpo --set runtime.dp_shard_degree=8
# RANKS: a machine's ranks (gpu: as many as it has GPUs). RESTARTS: how often (3). The folder must be one that all machines share.
# USR1 or TERM: training saves its state after the step under way and ends with 75; the same command goes on. A second TERM ends it at
# once, as the first one does to everything else. What stopped by its own rules (1) or cannot use what it was given (2) is not tried again.
set -euo pipefail
nodes=${NODES:-1}
where=(--standalone)
if [ "$nodes" -gt 1 ]; then
  where=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "${HEAD:?the address of the first machine}:29500" --rdzv-id "${JOB:-secondlook}")
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # each machine counts its own restarts: ranks that start again together need a new store
fi
SECONDLOOK_CODE=$(mktemp)
export SECONDLOOK_CODE
trap 'rm -f "$SECONDLOOK_CODE"' EXIT
# the launcher ignores USR1, and so does what it starts, but for ranks that have a state to save
(trap '' USR1; exec torchrun "${where[@]}" --nproc-per-node "${RANKS:-gpu}" --max-restarts "${RESTARTS:-3}" -m secondlook "$@") &
launcher=$! asked= verb=${1:-}
end() { # USR1 or TERM
  if [ "$1" = TERM ] && { [ -n "$asked" ] || [ "$verb" != train ]; }; then
    kill -TERM "$launcher" || true
  else
    asked=yes
    # shellcheck disable=SC2046
    kill -USR1 $(cat "/proc/$launcher/task"/*/children 2>/dev/null || pgrep -P "$launcher") || true
  fi
}
trap 'end USR1' USR1
trap 'end TERM' TERM
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done  # a signal interrupts waiting
wait "$launcher" && code=0 || code=$?
told=$(cat "$SECONDLOOK_CODE")
exit "${told:-$code}"
