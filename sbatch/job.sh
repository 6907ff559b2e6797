#!/usr/bin/env bash
# One task of an array: sbatch/job.sh SCRIPT FLAGS...; the *.sbatch files call it. LAUNCHER: what
# starts the script, python or torchrun with its flags.
#
# Takes settings from sbatch/site.sh where the flags do not give them, and this task's part of the
# videos. On SIGUSR1 (near the time limit) or SIGTERM (preemption) the script drops the video in hand
# and ends with 75; then the job goes back to the queue and finishes later, unless a video takes
# longer than the time limit.
script=$1
shift
CHECKPOINT= VIDEOS= PREDICTOR= CLIPS= OUT=
if [ -f sbatch/site.sh ]; then
    . sbatch/site.sh
elif [ -f .venv/bin/activate ]; then
    . .venv/bin/activate
fi
set -u # not before: activation scripts break under it

name=$(basename "$script" .py)
run=$(printf '%s_' "$name" "$@" | sed 's/_$//; s/_--*/_/g' | tr -c 'A-Za-z0-9.,_\n-' '-' | cut -c -120)
flags=("$@")
setting() { # flag, value, variable
    local flag
    for flag in "${flags[@]}"; do
        case $flag in "$1" | "$1="*) return ;; esac
    done
    if [ -z "$2" ]; then
        echo "$name.sbatch: no $1: pass it after the file name, or write $3=... into sbatch/site.sh" \
            "(cp sbatch/site.example.sh sbatch/site.sh)" >&2
        exit 2
    fi
    flags+=("$1" "$2")
}
case $name in # what a script runs on
*vjepa*)
    setting --checkpoint "$PREDICTOR" PREDICTOR
    setting --videos "$CLIPS" CLIPS
    ;;
*)
    setting --checkpoint "$CHECKPOINT" CHECKPOINT
    setting --videos "$VIDEOS" VIDEOS
    ;;
esac
setting --out "${OUT:+$OUT/$run}" OUT

out= began=$(date +%s)
for i in "${!flags[@]}"; do
    case ${flags[i]} in --out=*) out=${flags[i]#--out=} ;; --out) out=${flags[i + 1]} ;; esac
done

# the place of this task among those of the array; of an array with gaps each task takes the whole
# list, and claims share it out
index=0 count=${SLURM_ARRAY_TASK_COUNT:-1}
if [ "$count" -gt 1 ]; then
    step=${SLURM_ARRAY_TASK_STEP:-1}
    index=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / step))
    if [ $((SLURM_ARRAY_TASK_MIN + (count - 1) * step)) -ne "$SLURM_ARRAY_TASK_MAX" ]; then
        index=0 count=1
    fi
fi

# of an array this task alone: the bare number of one of them names them all
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
child= launcher=${LAUNCHER:-python} heard=USR1
[ "$launcher" = python ] || heard=TERM # what torchrun hands on
fruitless() { # at the time limit of a job that came back, and nothing finished since
    end=$(scontrol show job "$job" | sed -n 's/.*EndTime=\([^ ]*\).*/\1/p')
    end=$(date -d "${end:-?}" +%s 2>/dev/null) || return
    [ "$1" = USR1 ] && [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] &&
        [ $((end - $(date +%s))) -le 300 ] && # else a preemption
        [ -z "$(find "$out/videos" -name '*.json' -newermt "@$began" \
            -exec grep -l '"status": "done"' {} + 2>/dev/null)" ]
}
stopped() { # signal
    trap '' USR1 TERM
    code=75
    if [ -n "$child" ]; then
        kill "-$heard" "$child" 2>/dev/null
        wait "$child"
        code=$?
        [ "$heard" = USR1 ] || code=75 # torchrun's own code is 1, whatever the script's is
    fi
    if [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; then # over 128: before it could listen
        code=75
        if fruitless "$1"; then
            echo "$name.sbatch: no video was finished from start to time limit; allow more" \
                "with --time=HH:MM:SS, or fewer --steps" >&2
            exit 1
        fi
        # a job that was cancelled, or that Slurm requeues itself, is not running any more
        if scontrol show job "$job" | grep -q JobState=RUNNING; then
            scontrol requeue "$job" || echo "$name.sbatch: submit the same line again" >&2
        fi
    fi
    exit "$code"
}
trap 'stopped USR1' USR1
trap 'stopped TERM' TERM
echo "$name.sbatch: $launcher $script ${flags[*]} --shard $index/$count"
$launcher "$script" "${flags[@]}" --shard "$index/$count" &
child=$!
wait "$child"
