# shellcheck shell=bash disable=SC1090
# Sourced before `ray start` on every machine, whatever the cloud.
if [ -f ~/env/bin/activate ]; then . ~/env/bin/activate; fi
ulimit -n 65536 2> /dev/null || true
# `ray up` exports OMP_NUM_THREADS=1, which every process of Ray would inherit; unset, Ray gives each task what its CPUs allow.
unset OMP_NUM_THREADS
export RAY_AUTH_MODE=token
# Read by the head: it notices a vanished machine in about 5 seconds instead of 30.
export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3
# How long SIGTERM to `ray start --block` lets a worker drain; clouds give 30 s (GCP, Azure) or 120 s (AWS).
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=${RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S:-110}
