#!/usr/bin/env bash
# Beside Ray on a worker: watch.sh aws|gcp|azure|none. Both watches outlive the session, and Ray's restarts; one of each runs.
set -euo pipefail
cloud=$1

# The cloud's notice becomes Ray's drain.
if [ "$cloud" != none ]; then
    setsid flock -n ~/spot-watch.lock raymat spot-watch --cloud "$cloud" >> ~/spot-watch.log 2>&1 < /dev/null &
fi

# Without its head nobody ends a worker, and it would be paid for ever: ten minutes without a raylet power it off. The cluster
# files have such a machine terminated, not stopped.
export RAYMAT_GUARD_PERIOD=${RAYMAT_GUARD_PERIOD:-60} # seconds
setsid flock -n ~/guard.lock bash -c '
    absent=0
    while sleep "$RAYMAT_GUARD_PERIOD"; do
        if pgrep -x raylet > /dev/null; then absent=0; else absent=$((absent + 1)); fi
        if [ "$absent" -ge 10 ]; then sudo shutdown -h now; exit; fi
    done
' >> ~/guard.log 2>&1 < /dev/null &
