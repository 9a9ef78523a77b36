"""Each private interface of Ray that raymat uses, tried on its own: what fails here has changed in Ray."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, FailureConfig, TrainingFailedError
from ray.train.backend import BackendConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants as ray_constants
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState

from raymat.cluster import ray_data_internals as data
from raymat.cluster import ray_internals as core
from raymat.cluster import ray_train_internals as train
from raymat.errors import ClusterError
from tests.support.heads import free_port, wait_for
from tests.support.nodes import Nodes


def here() -> str:
    """The address of this process's raylet."""
    this = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == this]
    return core.raylet_address(node)


# Ray Core.


def test_the_installed_ray_is_the_tested_one(monkeypatch: pytest.MonkeyPatch) -> None:
    core.check_ray_version()
    monkeypatch.setattr(ray, "__version__", "2.59.1")
    with pytest.raises(ClusterError, match=r"tried with Ray 2\.60, found 2\.59\.1"):
        core.check_ray_version()


def test_what_ray_unpacks_for_a_job_is_known_by_its_path(tmp_path: Path) -> None:
    from ray._private.runtime_env.working_dir import WorkingDirPlugin

    plugin = WorkingDirPlugin(str(tmp_path), gcs_client=None)
    folder = plugin._get_directory_on_node("gcs://_ray_pkg_0f3a.zip")
    assert core.in_job_folder(str(folder))
    assert core.in_job_folder(f"{folder}/runs/night")
    assert not core.in_job_folder(str(tmp_path))


def test_ray_train_reads_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {value for value in vars(ray_constants).values() if isinstance(value, str)}
    assert core.RAY_TRAIN_SETTINGS.keys() - known == {"RAY_TRAIN_ENABLE_STATE_TRACKING"}
    from ray.train.constants import RAY_TRAIN_ENABLE_STATE_TRACKING

    assert RAY_TRAIN_ENABLE_STATE_TRACKING in core.RAY_TRAIN_SETTINGS
    monkeypatch.setattr(os, "environ", {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7"})
    core.apply_settings()
    wanted = core.RAY_TRAIN_SETTINGS | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7"}
    assert os.environ == wanted | core.RAY_SETTINGS


def test_ray_s_server_reads_every_setting() -> None:
    server = Path(ray.__file__).with_name("core") / "src/ray/gcs/gcs_server"
    assert [name for name in core.RAY_SETTINGS if name.encode() not in server.read_bytes()] == []


def test_a_raylet_and_a_head_respond_and_a_closed_port_does_not(cluster: None) -> None:
    assert core.responds(here())
    assert core.responds(ray.get_runtime_context().gcs_address)
    assert not core.responds(f"127.0.0.1:{free_port()}")


def test_a_raylet_starts_a_worker_process_ahead(cluster: None) -> None:
    before = core.worker_pids(here())
    core.prestart_worker(here(), ray.get_runtime_context().get_runtime_env_string(), 60)
    wait_for(lambda: core.worker_pids(here()) - before, 120)


def test_a_process_calls_its_setup_hook_before_anything_else(cluster: None) -> None:
    @ray.remote(num_cpus=0, runtime_env={"env_vars": {core.SETUP_HOOK: "wave.Error"}})
    def imported() -> bool:
        return "wave" in sys.modules

    assert ray.get(imported.remote())


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster of several nodes, in place of the one that other tests share."""
    ray.shutdown()
    made = Nodes()
    yield made
    made.stop()


@pytest.mark.slow
def test_a_node_is_declared_dead_and_the_head_is_known(nodes: Nodes) -> None:
    node = nodes.add_reader().node_id
    (head,) = [each for each in ray.nodes() if core.is_head(each)]
    assert head["NodeID"] == nodes.cluster.head_node.node_id
    core.declare_dead(nodes.cluster.address, node, "it did not answer")
    (gone,) = [each for each in ray.nodes() if not each["Alive"]]
    assert (gone["NodeID"], gone["DeathReasonMessage"]) == (node, "it did not answer")
    assert gone["DeathReason"] not in (0, core.IDLE_TERMINATION)


@pytest.mark.slow
def test_a_node_is_found_and_drained_without_a_driver(nodes: Nodes) -> None:
    node = nodes.add_reader().node_id
    address = nodes.cluster.address
    assert core.resolve_address(address) == address
    assert address in core.local_heads()
    client = core.gcs_client(address)
    both = {node, nodes.cluster.head_node.node_id}
    assert core.alive_nodes(client) == both
    assert both <= core.local_nodes()
    assert core.draining_nodes() == {}

    @ray.remote(num_cpus=0, label_selector={"ray.io/node-id": node})
    class Busy:  # an idle node would go as soon as it is drained
        def ping(self) -> None:
            return None

    busy = Busy.remote()
    ray.get(busy.ping.remote())
    deadline = int(time.time()) + 120
    assert core.drain_node(client, node, "reclaimed", deadline * 1000) is None
    assert core.draining_nodes() == {node: float(deadline)}


# Ray Train.


def test_what_happened_is_found_behind_the_errors_that_ray_wraps_around_it() -> None:
    died = ActorDiedError()
    assert train.unwrap(WorkerHealthCheckFailedError("unhealthy", died)) is died
    timeout = train.WorkerGroupStartupTimeoutError(2)
    assert train.unwrap(ControllerError(timeout)) is timeout
    raised = ZeroDivisionError("division by zero")
    assert train.unwrap(RayTaskError("f", "", raised)) is raised
    assert train.unwrap(raised) is raised


def test_a_controller_reschedules_workers_that_found_no_places() -> None:
    assert train.failed_to_start(ReschedulingState(TrainingFailedError()))
    assert not train.failed_to_start(RunningState())


def test_what_a_worker_asks_for_is_read_from_the_configuration() -> None:
    asked = ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5, "GPU": 0})
    assert train.worker_resources(asked) == {"CPU": 0.5}


def owned_objects() -> set[str]:
    """What this process has put into Ray's store: the names of such objects end so."""
    known = ray._private.worker.global_worker.core_worker.get_all_reference_counts()
    return {name for name in map(bytes.decode, known) if name.endswith("e1f505")}


def test_what_is_put_into_the_store_is_found_by_its_name(cluster: None) -> None:
    before = owned_objects()
    put = ray.put(1)
    assert owned_objects() - before == {put.hex()}


def test_policies_decide_and_workers_are_set_up_in_their_main_thread(
    tmp_path: Path, cluster: None
) -> None:
    told = tmp_path / "signalled"

    def setup() -> None:
        signal.signal(signal.SIGUSR1, lambda number, frame: told.write_text("yes"))

    class RetryOnce(train.DefaultFailurePolicy):
        failures = 0

        def make_decision(self, training_failed_error: Any) -> Any:
            self.failures += 1
            (tmp_path / f"failure-{self.failures}").write_text(str(training_failed_error))
            return [train.FailureDecision.RETRY, train.FailureDecision.RAISE][self.failures - 1]

    class OneWorker(train.ElasticPolicy):
        def make_decision_for_non_running_worker_group(self) -> Any:
            self.request_resources()
            return train.ResizeDecision(1, train.worker_resources(self.scaling_config))

        def make_decision_for_running_worker_group(self, **kwargs: Any) -> Any:
            self.request_resources()
            return train.NoopDecision()

    def work() -> None:
        environment = ray.get_runtime_context().get_runtime_env_string()
        (tmp_path / "environment").write_text(environment)
        if not told.exists():
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_for(told.exists, 30)
        raise ZeroDivisionError("division by zero")

    scaling = ray.train.ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 0.5})
    added = {"env_vars": {"MINE": "a b"}}
    expected = train.serialized_environment(added)
    trainer = train.PolicyTrainer(
        work,
        backend_config=train.WorkerTorchConfig(backend="gloo", setup=setup),
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name="run", storage_path=str(tmp_path), worker_runtime_env=added
        ),
        failure_policy=RetryOnce(FailureConfig()),
        scaling_policy=OneWorker(scaling, grows=True),
    )
    owned_before = owned_objects()
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(trainer.fit)
        wait_for(told.exists, 120)
        # Ray ends a process that owns one where its raylet ends.
        assert owned_objects() <= owned_before
        assert not training.done()
        with pytest.raises(TrainingFailedError, match="division by zero"):
            training.result()
    assert "division by zero" in (tmp_path / "failure-1").read_text()
    assert (tmp_path / "failure-2").exists()
    assert told.exists()
    # What a process must have to be kept for a worker.
    assert (tmp_path / "environment").read_text() == expected


def test_workers_are_killed_at_their_end(cluster: None) -> None:
    @ray.remote(num_cpus=0)
    class Worker:
        def ping(self) -> None:
            return None

    worker = Worker.remote()
    ray.get(worker.ping.remote())
    config = train.WorkerTorchConfig()
    assert isinstance(config, BackendConfig)
    group = SimpleNamespace(get_workers=lambda: [SimpleNamespace(actor=worker)])
    config.backend_cls().on_shutdown(group, config)
    wait_for(lambda: has_died(worker.ping), 60)


@pytest.mark.parametrize("outlived", [True, False])
def test_a_start_of_the_workers_makes_no_process_in_vain(tmp_path: Path, outlived: bool) -> None:
    trainer = train.PolicyTrainer(
        lambda: None,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="checkpoints", storage_path=str(tmp_path)),
        failure_policy=None,
        scaling_policy=None,
        outlived=outlived,
    )
    given = {type(each) for each in TorchTrainer._create_default_callbacks(trainer)}
    left = {type(each) for each in trainer._create_default_callbacks()}
    assert left <= given
    of_places = set() if outlived else {PlacementGroupCleanerCallback}
    assert given - left == {DatasetsCallback} | of_places


@pytest.mark.parametrize("grows", [True, False])
def test_a_dataset_is_read_without_a_process_that_counts_it(cluster: None, grows: bool) -> None:
    """In a process of its own: whoever reads changes Ray Data there."""

    @ray.remote(num_cpus=0, max_calls=1)
    def read() -> tuple[list[int], list[str]]:
        import ray.data

        from raymat.cluster.ray_data_internals import tell_nobody

        tell_nobody(grows)
        before = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
        found = sorted(row["id"] for row in ray.data.range(3).iter_rows())
        after = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
        return found, sorted(after - before)

    rows, started = ray.get(read.remote())
    assert rows == [0, 1, 2]
    assert not any("stats" in name.lower() for name in started)
    assert grows or started == []


class Pace:
    """Of three tasks, whoever waits."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def admits(self, submitted: int, running: int) -> bool:
        self.asked.append((submitted, running))
        return submitted < 3


def test_a_dataset_begins_as_many_tasks_as_its_pacer_admits(cluster: None, tmp_path: Path) -> None:
    def begin(row: int) -> Iterable[pa.Table]:
        (tmp_path / str(row)).touch()
        yield pa.table({"row": [row]})

    def begun() -> int:
        return len(list(tmp_path.iterdir()))

    pacer = Pace()
    rows = Rows([functools.partial(begin, row) for row in range(8)])
    dataset = ray.data.read_datasource(rows, override_num_blocks=8, num_cpus=1)
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = 1
    others = ray.data.DataContext.get_current()
    with data.pace(dataset.context, pacer):
        batches = iter(dataset.iter_batches(batch_size=None, prefetch_batches=1))
        assert next(batches)["row"].tolist() == [0]
        wait_for(lambda: begun() >= 3, 60)
        at = len(pacer.asked)
        wait_for(lambda: len(pacer.asked) > at + 20, 60)
        held = begun()
        # More than three: one begins whenever none runs and the reader, which takes some blocks ahead, has nothing to take.
        assert 3 <= held <= 7
        assert [batch["row"].tolist() for batch in batches] == [[row] for row in range(1, 8)]
    assert {submitted for submitted, _ in pacer.asked} >= {0, 1, 2, 3}
    assert max(running for _, running in pacer.asked) <= 3
    assert others.op_resource_reservation_enabled
    assert "raymat.pacer" not in others._kv_configs


class Rows(Datasource):
    """A read task for each function."""

    def __init__(self, functions: list[Callable[[], Iterable[pa.Table]]]) -> None:
        self._functions = functions

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        one = BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(function, one) for function in self._functions]


def has_died(method: Any) -> bool:
    """Whether an actor's method finds nobody; a kill may be overtaken by a call."""
    try:
        ray.get(method.remote(), timeout=60)
    except ActorDiedError:
        return True
    return False
