"""What bits depend on is recorded with each attempt and checkpoint, and a change of it is said, or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.config.fixed_options import promise_changes
from raymat.config.run import RunConfig
from raymat.distributed.world import World
from raymat.train.observability.events import read_events
from raymat.train.run.arithmetic import Arithmetic, arithmetic_here, compositing_on
from tests.support import runs
from tests.support.paths import TESTS

FACTS = {
    "processor": "A",
    "vectors": "AVX512",
    "torch": "2.13.0",
    "step trial": "1",
    "environment": "-",
}
WORKER = """
import os, sys
import torch
import torch.distributed as dist
from raymat.config.settled import with_recipe
from raymat.distributed.world import World
from raymat.errors import RaymatError
from raymat.train.loop import interfaces, trainer
from tests.support import runs

folder, steps, same_bits, rank, size = sys.argv[1], *sys.argv[2:4], *map(int, sys.argv[4:])
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{steps}", rank=rank, world_size=size)
torch.set_num_threads(1)
config = runs.tiny(folder, "run", steps=int(steps), same_bits=same_bits, valid_examples=0)
config = with_recipe(config, None)
world = World(rank, size)
try:
    trainer.run(
        runs.Prepared(config, "run", "synthetic", runs.order_of(config)),
        interfaces.Worker(world, torch.device("cpu"), environment=os.environ),
        feed=runs.Feed(config, world, {}),
        store=runs.store_of(config),
        host=interfaces.Host(),
    )
except RaymatError as error:
    sys.exit(f"{type(error).__name__}: {error.line}")
"""


def start(
    folder: Path, steps: int, environment: dict[str, str], *place: int, same_bits: str = "say"
) -> subprocess.Popen[str]:
    rank, size = place or (0, 1)
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(steps), same_bits, str(rank), str(size)],
        env=os.environ | environment, cwd=TESTS.parent, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def train(folder: Path, steps: int, same_bits: str = "say", **environment: str) -> tuple[int, str]:
    """One process of the run with these variables; its exit status and what it said last."""
    process = start(folder, steps, environment, same_bits=same_bits)
    said = process.communicate(timeout=120)[1].strip().splitlines()
    return process.returncode, said[-1] if said else ""


def config_of(folder: Path) -> RunConfig:
    return runs.tiny(folder, "run", steps=8, valid_examples=0)


def changes(folder: Path) -> list[dict[str, Any]]:
    return [e for e in read_events(runs.store_of(config_of(folder))) if e["kind"] == "arithmetic"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which four steps were trained here."""
    folder = tmp_path_factory.mktemp("begun")
    assert train(folder, 4) == (0, "")
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "copy")
    return tmp_path / "copy"


def forge(folder: Path, **facts: str) -> None:
    """Let the newest checkpoint say that it was made under other facts."""
    config = config_of(folder)
    step, snapshot = max(runs.checkpoints(config).items())
    (made_by,) = snapshot.extra["arithmetic"]
    snapshot.extra["arithmetic"] = [made_by | facts] if facts else None
    write_share(runs.store_of(config), CheckpointId(step, 7), snapshot, World(), "run")


def arithmetic(*workers: dict[str, str]) -> Arithmetic:
    return Arithmetic.of([FACTS | facts for facts in workers])


# What is said.


def test_equal_workers_are_one_entry_and_unequal_ones_an_entry_each() -> None:
    assert arithmetic({}, {}).store() == [FACTS]
    assert arithmetic({}, {"vectors": "AVX2"}).store() == [FACTS, FACTS | {"vectors": "AVX2"}]
    assert Arithmetic.read(arithmetic({}, {"torch": "2"}).store()) == arithmetic({}, {"torch": "2"})


def test_only_what_both_state_is_compared() -> None:
    more = FACTS | {"card": "X", "a fact of a later version": "y"}
    assert Arithmetic((more,)).difference(arithmetic({})) is None
    assert Arithmetic.read(None) is None
    assert Arithmetic.read([]) is None


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"vectors": "AVX2"},
            "another processor (vectors AVX512 -> AVX2): trials give the same bits, other computations may not",
        ),
        (
            {"torch": "2.14.0", "step trial": "2"},
            "other versions (torch 2.13.0 -> 2.14.0): a trial step gives other bits",
        ),
        (
            {"environment": "MKL_CBWR=AVX2", "processor": "B", "step trial": "2"},
            "another processor (processor A -> B) and other settings (environment - -> MKL_CBWR=AVX2): "
            "a trial step gives other bits",
        ),
        ({"step trial": "2"}, "another arithmetic: a trial step gives other bits"),
    ],
)
def test_a_difference_is_named_by_its_kind(facts: dict[str, str], said: str) -> None:
    assert arithmetic(facts).difference(arithmetic({})) == said
    assert arithmetic(facts, facts).difference(arithmetic({}, {}, {})) == said


def test_a_mixed_world_is_named_by_rank() -> None:
    assert arithmetic({}, {}).mixture is None
    mixed = arithmetic({}, {"vectors": "AVX2", "step trial": "2"})
    assert mixed.mixture == (
        "different processors (vectors of rank 0 AVX512, of rank 1 AVX2): a trial step gives other bits"
    )
    assert mixed.difference(mixed) is None
    swapped = arithmetic({"vectors": "AVX2", "step trial": "2"}, {})
    assert swapped.difference(mixed) == (
        "another processor (vectors AVX512 -> AVX2, vectors AVX2 -> AVX512): a trial step gives other bits"
    )


def test_long_lists_are_told_by_what_is_not_in_both() -> None:
    many = " ".join(f"avx{number}" for number in range(30))
    found = Arithmetic(({"instructions": f"{many} amx"},)).difference(
        Arithmetic(({"instructions": f"{many} fma f16c"},))
    )
    assert found == "another processor (instructions fma f16c -> amx)"


def test_this_process_states_what_its_bits_depend_on() -> None:
    facts = arithmetic_here(torch.device("cpu"), "fp32", "4", {"MKL_CBWR": "AVX2", "HOME": "/root"})
    again = arithmetic_here(torch.device("cpu"), "fp32", "4", {"MKL_CBWR": "AVX2"})
    assert facts == again
    assert facts["torch"] == torch.__version__
    assert facts["vectors"] == torch.backends.cpu.get_cpu_capability()
    assert facts["environment"] == "MKL_CBWR=AVX2"
    assert {
        "processor",
        "instructions",
        "opencv",
        "simplejpeg",
        "pillow",
        "numpy",
        "onednn",
    } <= facts.keys()


def test_same_bits_may_change_on_resume() -> None:
    one, other = (runs.tiny("/nowhere", "run", same_bits=how) for how in ("say", "strict"))
    assert promise_changes(one, other) == {}
    assert runs.tiny("/nowhere", "run").workers.same_bits == "say"


# What happens.


@pytest.mark.slow
def test_each_attempt_and_checkpoint_says_what_its_bits_depend_on(begun: Path) -> None:
    store = runs.store_of(config_of(begun))
    (start_event,) = [e for e in read_events(store) if e["kind"] == "start"]
    (facts,) = start_event["arithmetic"]
    assert facts["torch"] == torch.__version__
    extras = [
        snapshot.extra["arithmetic"] for snapshot in runs.checkpoints(config_of(begun)).values()
    ]
    assert extras == [[facts]] * len(extras)
    assert changes(begun) == []


@pytest.mark.slow
def test_a_run_resumed_on_another_processor_says_so_once(run: Path) -> None:
    assert train(run, 6, ATEN_CPU_CAPABILITY="default") == (0, "")
    (change,) = changes(run)
    assert change["step"] == 4
    assert f"vectors {torch.backends.cpu.get_cpu_capability()} -> DEFAULT" in change["difference"]
    assert "a trial step gives other bits" in change["difference"]
    # What it made since was made there: nothing changes any more.
    assert train(run, 8, ATEN_CPU_CAPABILITY="default") == (0, "")
    assert len(changes(run)) == 1


@pytest.mark.slow
def test_strict_refuses_another_processor_before_anything_is_trained(run: Path) -> None:
    before = runs.checkpoints(config_of(run)).keys()
    status, said = train(run, 6, "strict", ATEN_CPU_CAPABILITY="default")
    assert status == 1
    assert said.startswith(
        "ConfigError: --same-bits strict: step 4 would be resumed on another processor (vectors "
    )
    assert said.endswith("or with --same-bits say to let bits differ from here on")
    assert runs.checkpoints(config_of(run)).keys() == before
    assert [e for e in read_events(runs.store_of(config_of(run))) if e["kind"] == "first_step"][
        1:
    ] == []
    assert train(run, 6, "strict") == (0, "")


@pytest.mark.slow
def test_a_checkpoint_of_other_versions_is_said_and_with_strict_refused(run: Path) -> None:
    forge(run, torch="2.11.0", opencv="4.0.0")
    versions = f"torch 2.11.0 -> {torch.__version__}, opencv 4.0.0 -> "
    status, said = train(run, 6, "strict")
    assert (status, versions in said) == (1, True)
    assert train(run, 6) == (0, "")
    (change,) = changes(run)
    assert versions in change["difference"]


@pytest.mark.slow
def test_a_checkpoint_that_does_not_say_it_is_resumed_without_a_word(run: Path) -> None:
    forge(run)
    assert train(run, 6, "strict", ATEN_CPU_CAPABILITY="default") == (0, "")
    assert changes(run) == []


@pytest.mark.slow
def test_workers_that_are_not_alike_are_named(tmp_path: Path) -> None:
    environments: list[dict[str, str]] = [{}, {"ATEN_CPU_CAPABILITY": "default"}]
    for steps in (2, 4):
        started = [start(tmp_path, steps, environments[rank], rank, 2) for rank in range(2)]
        assert [process.communicate(timeout=120)[1] for process in started] == ["", ""]
        assert [process.returncode for process in started] == [0, 0]
    (change,) = changes(tmp_path)  # the second attempt is mixed in the same way
    assert (change["step"], change["mixed"]) == (0, True)
    assert "of rank 1 DEFAULT" in change["difference"]


@pytest.mark.parametrize(
    ("variable", "value", "trial"),
    [
        ("ATEN_CPU_CAPABILITY", "default", "step trial"),
        ("ONEDNN_MAX_CPU_ISA", "SSE41", "step trial"),
        ("OPENCV_CPU_DISABLE", "AVX512-SKX,AVX2", "picture trial"),
    ],
)
@pytest.mark.slow
def test_a_trial_finds_what_makes_other_bits(variable: str, value: str, trial: str) -> None:
    code = (
        "import json, os, torch; from raymat.train.run.arithmetic import arithmetic_here; "
        "print(json.dumps(arithmetic_here(torch.device('cpu'), 'fp32', '4', os.environ)))"
    )
    plain, other = (
        json.loads(
            subprocess.check_output(
                [sys.executable, "-c", code], env=os.environ | changed, cwd=TESTS.parent
            )
        )
        for changed in ({}, {variable: value})
    )
    assert plain[trial] != other[trial]
    assert other["environment"] == f"{variable}={value}"


def test_a_card_states_how_it_composes_and_the_reason_is_not_compared() -> None:
    no_card = torch.device("meta")  # as a card that launches no kernel
    assert compositing_on(no_card, "fp16", "2") == {"compositing": "one by one"}
    assert compositing_on(no_card, "fp16", "3") == {"compositing": "together"}
    here = {"compositing": "together", "no fused kernels": "no GPU"}
    assert compositing_on(no_card, "fp16", "4") == here
    other = {"compositing": "together", "no fused kernels": "another reason"}
    assert Arithmetic.of([here]).difference(Arithmetic.of([other])) is None
    fused = Arithmetic.of([{"compositing": "fused", "triton": "3.7.1"}])
    assert (
        fused.difference(Arithmetic.of([here]))
        == "another compositing (compositing together -> fused)"
    )
