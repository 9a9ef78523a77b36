#!/usr/bin/env bash
# Ray on this machine, in the foreground: start.sh head [OPTIONS] or start.sh worker HEAD:PORT [OPTIONS], both of `ray start`. SIGTERM
# drains a worker first: training commits, and leaves it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
role=$1
shift
if [ "$role" = head ]; then
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # with the head goes the cluster: nobody would take what it drains
    exec ray start --head --block --disable-usage-stats --dashboard-host=127.0.0.1 "$@"
fi
address=$1
shift
# The head may come later than its workers.
tries=0
until ray health-check --address "$address" > /dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -ge "${RAYMAT_HEAD_TRIES:-60}" ]; then echo "no head of Ray answers at $address" >&2; exit 1; fi
    sleep 2
done
exec ray start --address="$address" --block "$@"
