"""A driver with nothing to train: `python lease_holder.py STORAGE here|elsewhere TTL`, for tests that kill and suspend it.

Prints what happens to it, one line each: "held NAME", "asked REASON", "released", "lost LINE". Ends when its input does.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time

from raymat.errors import LeaseLostError
from raymat.storage.store import Store
from raymat.train.run.lease.entries import Pace
from raymat.train.run.lease.lease import Lease
from raymat.train.run.lease.process import Owner
from raymat.train.run.notice import LeavingError, Notice

COMMIT_SECONDS = 0.5


def main(storage: str, machine: str, ttl: float) -> None:
    pace = Pace(renew=0.1, ttl=ttl, look=0.05, watch=0.1)
    owner = Owner.me()
    if machine == "elsewhere":  # as if no other process could look this one up
        owner = dataclasses.replace(owner, machine=None)
    asked = threading.Event()

    def tell(notice: Notice) -> None:
        if not asked.is_set():
            print("asked", notice.reason, flush=True)
        asked.set()

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    try:
        with Lease.acquire(Store.open(storage, "run"), pace=pace, owner=owner) as lease:
            print("held", lease.name, flush=True)
            with lease.calling(tell):
                while not ended.wait(0.02):
                    if lease.lost is not None:
                        raise RuntimeError("the workers have ended")
                    if asked.is_set():
                        time.sleep(COMMIT_SECONDS)
                        raise LeavingError("committed", final=True)
        print("released", flush=True)
    except LeaseLostError as error:
        print("lost", error.line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
