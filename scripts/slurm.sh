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
#   sbatch scripts/slurm.sh train rl --config 7b/grpo --out /shared/grpo --set runtime.dp_shard_degree=8
# One launcher a node, eight ranks each; with shard=8 weights are divided inside a node and held once a node. When the job's time is
# nearly up (1200 seconds before: longer than a step and saving take), training saves its state after the step under way and the job
# goes back into the queue; so it does when a node fails, and resumes from its last state.
set -euo pipefail
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
export HEAD NODES=$SLURM_NNODES JOB=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0} RANKS=${SLURM_GPUS_ON_NODE:-8}
asked=
srun --kill-on-bad-exit=1 "$SLURM_SUBMIT_DIR/scripts/ranks.sh" "$@" &
steps=$!
save() { # the ranks are asked to; where they have not ended two minutes before the time is up, the job is put back all the same
  asked=yes
  scancel --signal=USR1 "$SLURM_JOB_ID" || true # to the launchers, not to this script
  (sleep "${SAVING:-1080}" && scontrol requeue "$SLURM_JOB_ID") &
  fallback=$!
}
trap save USR1
while kill -0 "$steps" 2>/dev/null; do wait "$steps" || true; done  # a signal interrupts waiting
wait "$steps" && code=0 || code=$?
[ -n "$asked" ] && kill "$fallback" 2>/dev/null || true
case $code in
0 | 1 | 2) ;;  # done, stopped by its own rules, or what it was given cannot be used
*) if [ -n "$asked" ]; then scontrol requeue "$SLURM_JOB_ID"; fi ;;
esac
exit "$code"
