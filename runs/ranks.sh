#!/usr/bin/env bash
# A job on every GPU of this machine, started again where a rank dies (it resumes from the last state):
#   runs/ranks.sh train rl --config recipes/grpo_7b.toml --out out/grpo
# On several machines, on each of them (NODES how many, HEAD the first one's address):
#   NODES=4 HEAD=10.0.0.1 runs/ranks.sh train rl --config recipes/grpo_7b.toml --out /shared/grpo --set shard=8
# RANKS: a machine's ranks (gpu: as many as it has GPUs). RESTARTS: how often (3). The folder must be one that all machines share.
set -euo pipefail
nodes=${NODES:-1}
where=(--standalone)
[ "$nodes" -gt 1 ] && where=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "${HEAD:?the address of the first machine}:29500" --rdzv-id "${JOB:-secondlook}")
exec torchrun "${where[@]}" --nproc-per-node "${RANKS:-gpu}" --max-restarts "${RESTARTS:-3}" -m secondlook.cli "$@"
