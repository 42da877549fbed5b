#!/bin/bash
# Written by nephi hpc-script (nephi_pipe @VERSION@): @COUNT@ as one SLURM job array, a task for
# each of them, and a job for the group when all tasks have ended, well or not.
#
#   bash @NAME@
#
# submits both. Once more, it goes on with what is not finished. A task that reaches its time limit
# does so by itself. What SLURM is asked for may be changed here:
#SBATCH --job-name=nephi
#SBATCH --array=@ARRAY@
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=@CPUS@
#SBATCH --mem=@MEMORY@
#SBATCH --time=@TIME@
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
@DIRECTIVES@
people=(@PEOPLE@)

bids=@BIDS@
output=@OUTPUT@
work=@WORK@
options=(@OPTIONS@)
group_options=(@GROUPOPTIONS@)
logs=$output/logs/slurm
restarts=10       # of a task that is told to try again
local_scratch=@LOCAL@   # 1: work on the disk of the node, and keep in "work" what is needed to go on
here=$work

# Ends in nephi-pipe itself, so that it is what gets signals.
nephi_pipe() {
@PROGRAM@
}

# Runs nephi-pipe beside this shell, which can then pass on the signal to stop.
run() {
    nephi_pipe "$bids" "$output" "$@" &
    local child=$!
    trap 'kill -TERM "$child" 2> /dev/null' TERM INT
    wait "$child"
    while kill -0 "$child" 2> /dev/null; do wait "$child"; done
    wait "$child"
}

person() {
    local label=${people[$SLURM_ARRAY_TASK_ID]} status
    local kept=$work/scratch/sub-$label
    if ((local_scratch)); then
        here=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/nephi_$SLURM_JOB_ID
        trap 'rm -rf -- "$here"' EXIT
        [[ ! -d $kept ]] || cp -a -- "$kept" "$here" || return 74
    fi
    mkdir -p -- "$here" "$output" || return 73
    echo "$(date '+%F %T') sub-$label on $(hostname), try $((${SLURM_RESTART_COUNT:-0} + 1))"
    run participant --participant-label "$label" -w "$here" ${options[@]+"${options[@]}"}
    status=$?
    if ((local_scratch)); then rm -rf -- "$kept.new"; fi
    if ((local_scratch && status == 0)); then
        rm -rf -- "$kept"
    elif ((local_scratch)); then
        mkdir -p -- "$work/scratch" && cp -a -- "$here" "$kept.new" && rm -rf -- "$kept" \
            && mv -- "$kept.new" "$kept"
    fi
    if ((status == 75)); then try_again; fi
    return "$status"
}

# A job that was cancelled is no longer RUNNING, and stays cancelled.
try_again() {
    local job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    if ((${SLURM_RESTART_COUNT:-0} < restarts)) \
        && [[ $(squeue --noheader --jobs="$job" --format=%T 2> /dev/null) == RUNNING ]]; then
        echo 'The task goes back to the queue and goes on later.'
        scontrol requeue "$job" && sleep 60
    fi
}

submit() {
    local array group path=${logs//%/%%} quoted=\'${script//\'/\'\\\'\'}\'
    mkdir -p -- "$logs" "$work" || exit 73
    array=$(sbatch --parsable --output="$path/%A_%a.log" "$script") || exit 75
    array=${array%%;*}
    group=$(sbatch --parsable --job-name=nephi_group --dependency="afterany:$array" \
        --cpus-per-task=1 --mem=2G --time=60 --output="$path/group_%j.log" \
        @GROUP@--wrap="bash $quoted group") || {
        echo "Submitted: array $array, but not the group (see above). Logs: $logs" >&2
        exit 75
    }
    echo "Submitted: array $array (${#people[@]} tasks), then group ${group%%;*}. Logs: $logs"
    echo 'What has become of the tasks:' "squeue --jobs=$array, sacct --jobs=$array"
}

set -u
script=$(realpath -- "${BASH_SOURCE[0]}")
if [[ ${1:-} == group ]]; then
    run group -w "$work" ${group_options[@]+"${group_options[@]}"}
elif [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    person
else
    submit
fi
