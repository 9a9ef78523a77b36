#!/usr/bin/env bash
# Has Ray drain this machine's worker, and returns when it is gone: for a preStop hook. As SIGTERM to `ray start --block` does.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python -c 'from raymat.cluster.spot.ray_start import end_ray_start; end_ray_start(None)'
while pgrep -x raylet > /dev/null; do sleep 1; done
