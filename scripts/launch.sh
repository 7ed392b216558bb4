# Sourced by train_*.sh: run $script with torchrun.
#   NPROC         processes on this machine (default: one for each GPU, else one)
#   NNODES        machines (default 1)
#   RDZV_HOST     for several machines: one of them, reachable from all
#   RDZV_PORT     its port (default 29400)
#   RDZV_ID       a name that all machines share (default srd)
#   MAX_RESTARTS  times a dead process may be started again (default 3; the run goes on from its last save)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
NPROC=${NPROC:-$((gpus > 0 ? gpus : 1))}
NNODES=${NNODES:-1}
if [ "$gpus" -eq 0 ] && [ -z "${OMP_NUM_THREADS:-}" ]; then
  cores=$(nproc)
  export OMP_NUM_THREADS=$((cores > NPROC ? cores / NPROC : 1))
fi

if [ "$NNODES" -eq 1 ]; then
  where=(--rdzv-backend c10d --rdzv-endpoint localhost:0)
elif [ -n "${RDZV_HOST:-}" ]; then
  where=(--rdzv-backend c10d --rdzv-endpoint "$RDZV_HOST:${RDZV_PORT:-29400}" --rdzv-id "${RDZV_ID:-srd}")
else
  echo "error: NNODES=$NNODES needs RDZV_HOST, the name of one machine that all can reach" >&2
  exit 2
fi
# torchrun passes a signal on to its processes, which save, but ends with a code of its own.
torchrun --nnodes "$NNODES" --nproc-per-node "$NPROC" --max-restarts "${MAX_RESTARTS:-3}" \
  "${where[@]}" "$script" "$@" &
child=$!
trap 'code=143; kill -TERM $child' TERM USR1
trap 'code=130; kill -INT $child' INT
code=
wait $child && result=0 || result=$?
[ -z "$code" ] || wait $child || true
exit "${code:-$result}"
