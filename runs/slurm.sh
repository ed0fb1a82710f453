#!/usr/bin/env bash
#SBATCH --job-name=secondlook
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# From the repository's folder:
#   sbatch runs/slurm.sh train rl --config recipes/grpo_7b.toml --out /shared/grpo --set shard=8
# One launcher a node, eight ranks each; with shard=8 weights are divided inside a node and held once a node. When the job's time is
# nearly up, or a node fails, it goes back into the queue and resumes from its last state.
set -euo pipefail
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD NODES=$SLURM_NNODES JOB=$SLURM_JOB_ID RANKS=${SLURM_GPUS_ON_NODE:-8}
srun --kill-on-bad-exit=1 "$SLURM_SUBMIT_DIR/runs/ranks.sh" "$@" &
wait $!
