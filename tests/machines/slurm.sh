#!/usr/bin/env bash
# SLURM on this machine: two nodes, the real sbatch file, a run that is requeued twice. Minutes, since
# SLURM counts time limits in minutes.
#
#   tests/machines/slurm.sh FOLDER     needs root, and Debian's slurmctld slurmd slurm-client munge
#
# Everything is in namespaces of its own (network, processes, mounts), so nothing of the machine's
# own SLURM or network is touched and nothing stays behind. Exit code 77: cannot run here (says why).
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ "${2:-}" != inside ]; then # start again in the namespaces
  folder=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd)
  for tool in slurmctld slurmd sbatch srun scontrol munged unshare ip setpriv; do
    PATH=$PATH:/usr/sbin type $tool >/dev/null || { echo "skipped: no $tool" >&2; exit 77; }
  done
  what=$(unshare --mount --net --pid --fork --mount-proc true 2>&1) || { echo "skipped: $what" >&2; exit 77; }
  exec unshare --mount --net --pid --fork --kill-child --mount-proc bash "$0" "$folder" inside
fi

folder=$1
export PATH=$PATH:/usr/sbin PYTHONPATH=$PWD OMP_NUM_THREADS=1 SRD_DIST_TIMEOUT=120
private=$(mktemp -d /tmp/slurm.XXXXXX) # short: socket names have a length limit
trap 'rm -rf "$private"' EXIT
mkdir "$private"/{munge,state,spool}

# The machine: a network (with loopback alone SLURM finds no address, not even 127.0.0.1: it asks
# with AI_ADDRCONFIG), and names for its nodes.
address=10.77.0.1
ip link set lo up
ip link add net0 type veth peer name net1
ip address add $address/24 dev net0
ip link set net0 up
ip link set net1 up
echo -e "127.0.0.1 localhost\n$address $(hostname) node1 node2" >"$private/hosts"
mount --bind "$private/hosts" /etc/hosts

# munge, as its own user; SLURM, as root.
chmod 755 "$private"
head -c 1024 /dev/urandom >"$private/munge/key"
chown -R munge "$private/munge"
chmod 755 "$private/munge"
chmod 400 "$private/munge/key"
setpriv --reuid munge --clear-groups munged --socket "$private/munge/socket" --key-file "$private/munge/key" \
  --pid-file "$private/munge/pid" --seed-file "$private/munge/seed" --log-file "$private/munge/log"

export SLURM_CONF=$private/slurm.conf
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname)($address)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$private/munge/socket,cred_expire=5
StateSaveLocation=$private/state
SlurmdSpoolDir=$private/spool/%n
SlurmctldPidFile=$private/slurmctld.pid
SlurmdPidFile=$private/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeHostname=$(hostname) NodeAddr=$address Port=17001
NodeName=node2 NodeHostname=$(hostname) NodeAddr=$address Port=17002
PartitionName=cpu Nodes=ALL Default=YES GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
CONF
slurmctld
slurmd -N node1
slurmd -N node2

# `state JOB FIELD`: what scontrol says; `wait_for JOB SECONDS TEXT`: until it says so.
state() { scontrol show job "$1" | grep -o "\b$2=[^ ]*" | cut -d= -f2; }
wait_for() {
  for ((second = 0; second < $2; second++)); do
    scontrol show job "$1" | grep -q "$3" && return
    sleep 1
  done
  echo "job $1 did not come to $3 in $2 s:" && scontrol show job "$1" && cat "$folder"/*.out && exit 1
}
wait_for_step() { # of a run: its metrics name it
  until grep -q "\"step\": $2," "$folder/$1/metrics.jsonl" 2>/dev/null; do
    sleep 1 && [ $SECONDS -lt 900 ] || { cat "$folder"/*.out; exit 1; }
  done
}

options=(--train_student --config configs/digits/deit.yaml --distillation none --batch-size 48
  --epochs "${EPOCHS:-150}" --output "$folder" --set model.image_size=16)

echo "== undisturbed: two processes on one machine"
NPROC=2 scripts/train_deit.sh "${options[@]}" --name undisturbed 2>"$folder/undisturbed.log"

echo "== two machines; SIGUSR1 before the time limit, then preempted"
submit() { sbatch --parsable --nodes 2 --output "$folder/%j.out" "$@"; }
job=$(submit --time 1 --signal B:USR1@10 scripts/slurm/deit.sbatch "${options[@]}" --name run)
wait_for "$job" 120 Restarts=1
made=$(tail -n 1 "$folder/run/metrics.jsonl" | grep -o '"step": [0-9]*' | cut -d ' ' -f 2)
scontrol update "JobId=$job" TimeLimit=30 StartTime=now
wait_for_step run $((made + 5))
urgent=$(submit --time 5 --partition urgent --wrap 'sleep 2')
wait_for "$job" 120 Restarts=2
wait_for "$urgent" 120 JobState=COMPLETED
scontrol update "JobId=$job" StartTime=now
wait_for "$job" 500 JobState=COMPLETED
cat "$folder/$job.out"
python tests/machines/same_run.py "$folder/undisturbed" "$folder/run"

echo "== scancel saves and ends"
cancelled=$(submit scripts/slurm/deit.sbatch "${options[@]}" --name cancelled)
wait_for_step cancelled 1
scancel "$cancelled"
wait_for "$cancelled" 60 "JobState=CANCELLED"
[ "$(state "$cancelled" Restarts)" = 0 ]
grep -m 1 "stopped: saved" "$folder/$cancelled.out"

echo "== wrong input stays ended"
wrong=$(submit scripts/slurm/deit.sbatch --modle tiny)
wait_for "$wrong" 60 JobState=FAILED
[ "$(state "$wrong" ExitCode) $(state "$wrong" Restarts)" = "2:0 0" ]
grep -q "did you mean '--model'" "$folder/$wrong.out"
echo "all as it should be"
