#!/usr/bin/env bash
# Two machines on this one, and the real launcher across them; each is lost once, for good.
#
#   tests/machines/two_machines.sh FOLDER     needs root and iproute2
#
# A machine is a network namespace at its end of a cable (a veth pair), with its own host name and
# processes, all of which die with its first (kill -9 of that one is the power cut). Nothing stays
# behind. Exit code 77: cannot run here (says why).
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ "${2:-}" != inside ]; then # start again in namespaces of our own
  folder=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd)
  for tool in unshare ip; do type $tool >/dev/null || { echo "skipped: no $tool" >&2; exit 77; }; done
  what=$(unshare --mount --net --uts --pid --fork --mount-proc true 2>&1) || { echo "skipped: $what" >&2; exit 77; }
  exec unshare --mount --net --pid --fork --kill-child --mount-proc bash "$0" "$folder" inside
fi

folder=$1
export PYTHONPATH=$PWD OMP_NUM_THREADS=1
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
ip link add cable1 type veth peer name cable2
for number in 1 2; do
  ip netns add machine$number
  ip link set cable$number netns machine$number
  ip -n machine$number link set lo up
  ip -n machine$number address add 10.88.0.$number/24 dev cable$number
  ip -n machine$number link set cable$number up
done
printf '127.0.0.1 localhost\n10.88.0.1 machine1\n10.88.0.2 machine2\n' >"$folder/hosts"

machine() { # number, command: its first process
  exec ip netns exec "machine$1" unshare --uts --mount --pid --fork --kill-child --mount-proc bash -c \
    'hostname "$1"; mount --bind "$2" /etc/hosts; exec "${@:3}"' - "machine$1" "$folder/hosts" "${@:2}"
}
train() { # machine, name of the run
  machine "$1" scripts/train_deit.sh --train_student --config configs/digits/deit.yaml \
    --distillation none --batch-size 48 --epochs "${EPOCHS:-40}" --set model.image_size=16 \
    --set train.save_every_steps=5 --output "$folder" --name "$2"
}
both() { # the run, on both machines
  export NNODES=2 RDZV_HOST=machine1 SRD_DIST_TIMEOUT=20
  for number in 1 2; do
    train $number run >>"$folder/machine$number.log" 2>&1 &
    pid[number]=$!
  done
}
cut_power() {
  kill -9 "${pid[$1]}"
  wait "${pid[$1]}" 2>/dev/null || true
}
wait_for_step() {
  until grep -q "\"step\": $1," "$folder/run/metrics.jsonl" 2>/dev/null; do
    sleep 0.2
    kill -0 "${pid[@]}" && [ $SECONDS -lt 500 ] || { cat "$folder"/machine?.log; exit 1; }
  done
}
must_end() { # machine, exit code: by itself, and soon
  SECONDS=0
  while kill -0 "${pid[$1]}" 2>/dev/null; do
    sleep 0.2
    [ $SECONDS -lt 100 ] || { echo "machine $1 hangs" && cat "$folder/machine$1.log" && exit 1; }
  done
  wait "${pid[$1]}" && code=0 || code=$?
  [ $code -eq "$2" ] || { echo "machine $1: exit code $code" && cat "$folder/machine$1.log" && exit 1; }
  echo "   machine $1 ended by itself after $SECONDS s, exit code $code"
  [ $code -eq 0 ] || grep '^failed:' "$folder/machine$1.log" | tail -n 1
}

echo "== undisturbed: two processes on one machine"
(NPROC=2 train 1 undisturbed) >"$folder/undisturbed.log" 2>&1

echo "== two machines; the second loses its cable and its power"
both
wait_for_step 12
ip -n machine2 link set cable2 down
cut_power 2
must_end 1 1
ip -n machine2 link set cable2 up

echo "== both again; the first one, where they meet, is killed"
both
wait_for_step 33
cut_power 1
must_end 2 1

echo "== both again, to the end"
both
must_end 1 0
must_end 2 0
grep -h resuming "$folder/machine1.log" "$folder/machine2.log"
python tests/machines/same_run.py "$folder/undisturbed" "$folder/run"
