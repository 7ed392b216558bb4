# Sourced by the *.sbatch files: run $launcher once on each machine of the job, and requeue the job
# when its time is up; the same command then goes on from the last save. How a job ends:
#   done (0), wrong input (2), a failure (1)   stays ended, with that code
#   the signal before the time limit           saves (138), and is requeued from here
#   preemption                                 saves (143), and is requeued: from here, since SLURM
#                                              (22.05) counts a job that ends by itself within
#                                              GraceTime as failed; else by SLURM
#   scancel                                    saves (143) within SLURM's KillWait, and stays ended
#   a machine dies                             SLURM requeues it (--requeue)
cd "$SLURM_SUBMIT_DIR"
if [ ! -x "$launcher" ]; then
  echo "error: $SLURM_SUBMIT_DIR has no $launcher: call sbatch in the project's folder" >&2
  exit 2
fi
source scripts/setup.sh # once, here, and not on all machines at the same time

export NNODES=$SLURM_JOB_NUM_NODES RDZV_ID=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
export RDZV_PORT=${RDZV_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
RDZV_HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RDZV_HOST

# The signal before the limit comes to this shell alone (--signal=B:...), SIGTERM to everything.
asked=
trap 'asked=USR1; kill -USR1 "${srun:-}" || true' USR1
trap 'asked=TERM' TERM
# When one machine's launcher has ended, the others' end within moments, or are ended.
srun --ntasks "$NNODES" --ntasks-per-node 1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task "$SLURM_CPUS_PER_TASK"} \
  --wait 60 "$launcher" "$@" &
srun=$!
while wait $srun && code=0 || code=$?; kill -0 $srun 2>/dev/null; do :; done

preempted=$(scontrol show job "$SLURM_JOB_ID" | grep -o 'PreemptTime=[0-9].*' || true)
echo "job $SLURM_JOB_ID: exit code $code${asked:+, SIG$asked}${preempted:+, $preempted}" >&2
if { [ $code -eq 138 ] || [ $code -eq 143 ]; } && [ "$asked${preempted:+ed}" != TERM ]; then
  scontrol requeue "$SLURM_JOB_ID" # ends this shell too
fi
exit $code
