"""The hosts, the cluster on them, and the parts of the story in their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.hosts.bucket import ENVIRONMENT, NAME, bucket
from tests.hosts.cluster_file import write_cluster_file
from tests.hosts.machine import FOLDER, Machine, lay_network
from tests.hosts.operator_shell import Clock, Operator
from tests.hosts.story import ENDLESS, Story
from tests.hosts.transcript import telling

Parts = Sequence[tuple[str, Sequence[str]]]
"""Of the transcript: sentences, each with what was said."""


class Hosts:
    """A head, two workers, and one that comes later under an address that the cluster file has from the beginning."""

    def __init__(self) -> None:
        self._head = Machine("head", 10)
        self._now = [Machine("one", 11), Machine("two", 12)]
        self._later = Machine("three", 13)
        self._clock = Clock()
        self._operator = Operator(FOLDER / "hosts.yaml", FOLDER)

    def play(self) -> Parts:
        """Play the story. Raises RuntimeError, OSError or AssertionError where it fails."""
        everyone = [self._head, *self._now, self._later]
        lay_network({machine.name: machine.address for machine in everyone})
        took = [machine.boot() for machine in (self._head, *self._now)]
        self._clock.say(f"{len(took)} hosts are up, each after {max(took):.1f} s at most")
        write_cluster_file(FOLDER / "hosts.yaml", self._head, [*self._now, self._later])
        with bucket(FOLDER / "s3") as objects:
            return self._play(objects)

    def _play(self, objects: Path) -> Parts:
        clock, operator = self._clock, self._operator
        operator.ray_up()
        clock.say("`ray up` is done")
        with operator.tunnel():
            for machine in self._now:
                operator.await_node(machine.address, True, 300)
            clock.say(f"{len(self._now)} workers are in the cluster")
            story = Story(clock, operator, objects)
            story.submit("disturbed", "night-1", ENDLESS)
            going = story.lose(self._now)
            story.announce(going, self._later)
            steps = story.stop("night-1")
            said = operator.job_log("night-1")
            story.submit("disturbed", "night-2", steps)
            story.finish("disturbed", "night-2")
            story.submit("undisturbed", "day-1", steps)
            story.finish("undisturbed", "day-1")
        run, other = (f"s3://{NAME}/runs/{name}" for name in ("disturbed", "undisturbed"))
        restarts = operator.run("raymat", "restarts", run, more=ENVIRONMENT).splitlines()
        equal = operator.run("raymat", "diff", run, other, more=ENVIRONMENT).splitlines()
        clock.say(f"raymat diff: {equal[-1]}")
        return [
            ("The times:", clock.lines),
            ("What the job said (`ray job logs night-1`), without its line of progress:", telling(said)),
            (f"What `raymat spot-watch` said on host {going.name}:", going.read("spot-watch.log").splitlines()),
            ("What the disturbances cost:", [f"$ raymat restarts {run}", *restarts]),
            ("And whether they changed a bit:", [f"$ raymat diff {run} {other}", *equal]),
        ]  # fmt: skip
