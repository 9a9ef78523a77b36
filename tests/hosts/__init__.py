"""Three real hosts on one machine, a cluster of Ray on them, and what becomes of a run when hosts go: `make hosts`."""
