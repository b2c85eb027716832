#!/usr/bin/env bash
# Start a run so that it can be stopped, saved and restarted: torchrun with the flags that this takes.
#
#   scripts/train.sh model.partial_pretrain=Qwen/Qwen2.5-0.5B data.train_files=... trainer.default_local_dir=runs/mine
#
# One rank per GPU of this machine (without GPUs one), and all of it once more, up to MAX_RESTARTS times, when a rank
# dies. On several nodes, start it on each, with the usual variables:
#
#   NPROC_PER_NODE  ranks on this node                   default: its GPUs, or 1
#   NNODES          number of nodes                      default: 1
#   NODE_RANK       this node's number, from 0           default: given by the rendezvous
#   MASTER_ADDR     the node that the others meet at     needed with NNODES > 1 (or RDZV_ENDPOINT=host:port)
#   MASTER_PORT     its port                             default: 29500
#   RDZV_ID         a name that only this job has        default: $SLURM_JOB_ID, or sft
#   MAX_RESTARTS    default: 3
#   OMP_NUM_THREADS threads of a rank on the CPU         default: cores / ranks
#   SHUTDOWN_S      seconds in which a run that is told to stop may save before it is killed; default: 300 (30 before torch 2.13)
#
# Exits with 0 when the run is finished, or was stopped by stop_now; with 1 when it failed or a signal stopped it (the
# ranks themselves exit with 128 + its number, torchrun does not pass that on).
set -euo pipefail

# torch takes a second to import, and torchrun and each rank will do so: here it is imported only to count GPUs.
facts=$(python -c "
import os
from importlib.util import find_spec
from pathlib import Path
torchrun = Path(find_spec('torch').origin).with_name('distributed') / 'run.py'
gpus = 0
if not os.environ.get('NPROC_PER_NODE'):
    import torch
    gpus = torch.cuda.device_count()
print(gpus, '--shutdown-timeout' in torchrun.read_text())")
read -r gpus can_wait <<< "$facts"
if [ "${NNODES:-1}" = 1 ]; then
    meet=(--standalone)
else
    endpoint=${RDZV_ENDPOINT:-${MASTER_ADDR:?NNODES=$NNODES needs MASTER_ADDR, the node that the others meet at}:${MASTER_PORT:-29500}}
    meet=(--nnodes="$NNODES" --rdzv-backend=c10d --rdzv-endpoint="$endpoint" --rdzv-id="${RDZV_ID:-${SLURM_JOB_ID:-sft}}")
    [ -z "${NODE_RANK:-}" ] || meet+=(--node-rank="$NODE_RANK")
    # Each restart meets at a store of its own: the shared one still holds the keys of the ranks that died.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi

# Rows differ in length: without it, memory is lost between blocks of different sizes. Yours stays.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}"

# torchrun sets 1 where nothing is set: with cpu_offload and on CPUs, one core of each rank would do all the work.
ranks=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))}
cores=$(($(nproc) / ranks))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))}"

if [ "$can_wait" = True ]; then
    wait=(--shutdown-timeout="${SHUTDOWN_S:-300}")
else
    wait=()
    echo "train.sh: torchrun of this torch kills a run 30 s after it was told to stop, saved or not; torch 2.13 waits." >&2
fi

# SIGUSR1, which Slurm can send before the time is up, kills torchrun unless it is told to pass it on.
exec python -m torch.distributed.run "${meet[@]}" \
    --nproc-per-node="$ranks" \
    --max-restarts="${MAX_RESTARTS:-3}" \
    "${wait[@]}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m sft.fsdp_sft_trainer "$@"
