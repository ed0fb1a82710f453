#!/usr/bin/env bash
#SBATCH --job-name=secondlook
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@1200
# From the repository's folder:
#   sbatch runs/slurm.sh train rl --config recipes/grpo_7b.toml --out /shared/grpo --set shard=8
# One launcher a node, eight ranks each; with shard=8 weights are divided inside a node and held once a node. When the job's time is
# nearly up (1200 seconds before: longer than a step and saving take), training saves its state after the step under way and the job
# goes back into the queue; so it does when a node fails, and resumes from its last state.
set -euo pipefail
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD NODES=$SLURM_NNODES JOB=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0} RANKS=${SLURM_GPUS_ON_NODE:-8}
asked=
srun --kill-on-bad-exit=1 "$SLURM_SUBMIT_DIR/runs/ranks.sh" "$@" &
steps=$!
trap 'asked=yes; scancel --signal=USR1 "$SLURM_JOB_ID" || true' USR1  # to the launchers, not to this script
while kill -0 "$steps" 2>/dev/null; do wait "$steps" || true; done  # a signal interrupts waiting
wait "$steps" && code=0 || code=$?
case $code in
0 | 1 | 2) ;;  # done, stopped by its own rules, or what it was given cannot be used
*) [ -n "$asked" ] && scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
