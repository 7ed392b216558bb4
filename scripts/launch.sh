# Sourced by train_*.sh: run $module with torchrun.
#   NPROC         processes on this machine (default: one for each GPU, else one)
#   NNODES        machines (default 1); start the same line on each
#   RDZV_HOST     for several machines: one of them, reachable from all
#   RDZV_PORT     its port (default 29400)
#   RDZV_ID       a name that all machines share (default srd)
#   LOCAL_ADDR    how the others reach this machine, where its host name does not say it
#   MAX_RESTARTS  times a dead process may be started again (default 3; the run goes on from its last save)
#   SRD_DIST_TIMEOUT  seconds to wait for processes that do not come or do not answer (default 600)
#
# SIGTERM, SIGINT and SIGUSR1 finish the step, save, and end with 143, 130 and 138; wrong input
# ends with 2. torchrun would hide all of that: scripts/elastic.py says how it is kept.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

SRD_LAUNCH=$(mktemp -d)
export SRD_LAUNCH
trap 'rm -rf "$SRD_LAUNCH"' EXIT

code=
stop() { # signal for the processes, exit code when they have saved
  code=$2
  touch "$SRD_LAUNCH/stop"
  pids=$(cat "$SRD_LAUNCH"/pid.* 2>/dev/null) || true
  kill -s "$1" ${pids:-${torchrun:-}} 2>/dev/null || true
}
trap 'stop TERM 143' TERM HUP
trap 'stop INT 130' INT
trap 'stop TERM 138' USR1

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
NPROC=${NPROC:-$((gpus > 0 ? gpus : 1))}
NNODES=${NNODES:-1}
MAX_RESTARTS=${MAX_RESTARTS:-3}
export RDZV_PORT=${RDZV_PORT:-29400} SRD_DIST_TIMEOUT=${SRD_DIST_TIMEOUT:-600}
for name in NPROC NNODES RDZV_PORT SRD_DIST_TIMEOUT MAX_RESTARTS; do
  if ! [[ ${!name} =~ ^[0-9]{1,6}$ ]] || [[ ${!name} -eq 0 && $name != MAX_RESTARTS ]]; then
    echo "error: $name=${!name} must be a whole number above 0" >&2
    exit 2
  fi
done
if [ "$gpus" -eq 0 ] && [ -z "${OMP_NUM_THREADS:-}" ]; then
  cores=$(nproc)
  export OMP_NUM_THREADS=$((cores > NPROC ? cores / NPROC : 1))
fi

if [ "$NNODES" -eq 1 ]; then
  where=(--rdzv-backend c10d --rdzv-endpoint localhost:0)
  unset RDZV_HOST
elif [ -n "${RDZV_HOST:-}" ]; then
  export RDZV_HOST
  where=(--rdzv-backend c10d --rdzv-endpoint "$RDZV_HOST:$RDZV_PORT" --rdzv-id "${RDZV_ID:-srd}")
  where+=(--rdzv-conf "join_timeout=$SRD_DIST_TIMEOUT,read_timeout=$SRD_DIST_TIMEOUT")
  [ -z "${LOCAL_ADDR:-}" ] || where+=(--local-addr "$LOCAL_ADDR")
else
  echo "error: NNODES=$NNODES needs RDZV_HOST, the name of one machine that all can reach" >&2
  exit 2
fi

# Signals go from here to the training processes themselves. Through torchrun they would have 30
# seconds until SIGKILL, and SIGUSR1 would end torchrun at once. Where something else signals
# torchrun too (SLURM does), the variable gives them longer: torch 2.15 reads it (and has
# --shutdown-timeout), torch 2.6 does not, and stays with 30. setsid keeps a terminal's Ctrl-C from it.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
# The other variable: torchrun's own store would hand processes that it starts again the addresses
# of the dead ones (pytorch issue 135712; gloo in torch 2.15: "Connection refused").
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
(
  trap '' USR1
  exec setsid python scripts/elastic.py agent --nnodes "$NNODES" --nproc-per-node "$NPROC" \
    --max-restarts "$MAX_RESTARTS" "${where[@]}" scripts/elastic.py worker "$module" "$@"
) &
torchrun=$!

while wait $torchrun && result=0 || result=$?; kill -0 $torchrun 2>/dev/null; do :; done

end=$(cat "$SRD_LAUNCH"/end.* 2>/dev/null | sort -n | tail -n 1) || true
case "$end,$code" in
  [12],* | 1[34]?,) exit "$end" ;; # wrong input, a failure, or a stop that came another way
  1[34]?,*) exit "$code" ;;        # saved, as asked
  ,?*)                             # USR1 wants a save, to go on later: without one nobody shall try for ever
    echo "stopped without a save" >&2
    exit $((code == 138 ? 1 : code)) ;;
  *) exit "$result" ;;
esac
