"""Laws of deploy/: files for other schedulers say only what differs, and each keeps what a run needs to survive."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymat.cluster.ray_autoscaler_internals import schema_mistake
from raymat.config.flags import parse_run
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
TEXTS = {
    path: path.read_text(encoding="utf-8") for path in sorted(DEPLOY.rglob("*")) if path.is_file()
}
NAMES = {str(path.relative_to(DEPLOY)): text for path, text in TEXTS.items()}


def load(name: str) -> Any:
    return yaml.safe_load(NAMES[name])


RAY_CLUSTER = load("kubernetes/raycluster.yaml")
HEAD = RAY_CLUSTER["spec"]["headGroupSpec"]
(WORKERS,) = RAY_CLUSTER["spec"]["workerGroupSpecs"]
SCRIPTS = [p for p in TEXTS if p.suffix in (".sh", ".sbatch")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shells_can_read_every_script(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def test_what_skypilot_runs_is_a_script_that_shells_can_read() -> None:
    task = load("skypilot.yaml")
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)


def test_every_script_that_is_named_is_there() -> None:
    for path, text in TEXTS.items():
        for named in re.findall(r"\bdeploy/[\w./-]+\.(?:sh|yaml|sbatch|json)\b", text):
            assert (ROOT / named).exists(), f"{path} names {named}"


def test_every_flag_of_a_run_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_run("refine", ["--help-all"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    found = 0
    for text in NAMES.values():
        for command in re.findall(
            r"jobs/\S*\.py.*", text.replace("\\\n", " ").replace("\n    --", " --")
        ):
            flags = set(re.findall(r" (--[\w-]+)", command.replace("`", "\n").splitlines()[0]))
            assert flags <= known, flags - known
            found += len(flags)
    assert found == 18


def test_google_clouds_file_is_rays_and_mounts_what_the_other_mounts() -> None:
    gcp = load("gcp.yaml")
    assert schema_mistake(gcp) is None
    assert gcp["file_mounts"] == CLUSTER["file_mounts"]
    for key in ("head_start_ray_commands",):
        assert gcp[key] == CLUSTER[key]
    theirs = [c.replace("watch.sh gcp", "watch.sh aws") for c in gcp["worker_start_ray_commands"]]
    assert theirs == CLUSTER["worker_start_ray_commands"]
    gpu = gcp["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0
    assert gpu["node_config"]["scheduling"]["provisioningModel"] == "SPOT"


def test_a_pod_that_is_taken_drains_first() -> None:
    pod = WORKERS["template"]["spec"]
    (container,) = pod["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == [
        "bash",
        "/opt/raymat/deploy/node/drain.sh",
    ]
    (drain,) = (int(e["value"]) for e in container["env"] if "DRAIN_TIMEOUT_S" in e["name"])
    assert drain < pod["terminationGracePeriodSeconds"] == 120


def test_no_pod_is_kept_without_a_job_and_the_head_computes_nothing() -> None:
    assert WORKERS["minReplicas"] == 0
    assert (HEAD["rayStartParams"]["num-cpus"], HEAD["rayStartParams"]["num-gpus"]) == ("0", "0")


def test_pods_have_a_token_and_no_roots_rights() -> None:
    assert RAY_CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    for group in (HEAD, WORKERS):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_kuberays_head_looks_for_dead_nodes_as_every_other_does() -> None:
    (container,) = HEAD["template"]["spec"]["containers"]
    told = {e["name"]: e["value"] for e in container["env"]}
    assert told == dict(re.findall(r"(RAY_health_check_\w+)=(\d+)", NAMES["node/env.sh"]))


def test_the_object_store_of_a_pod_fits_into_its_memory() -> None:
    for group, size in ((HEAD, 2.5 * 2**30), (WORKERS, 20 * 2**30)):
        assert int(group["rayStartParams"]["object-store-memory"]) < size


def test_the_job_runs_on_that_cluster_and_is_given_time_to_commit() -> None:
    job = load("kubernetes/rayjob.yaml")["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": RAY_CLUSTER["metadata"]["name"]}
    assert yaml.safe_load(job["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


def test_ray_is_the_tested_version() -> None:
    tested = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    assert tested is not None
    assert RAY_CLUSTER["spec"]["rayVersion"] == tested[1]


def test_skypilots_job_starts_again_elsewhere_and_keeps_its_secret() -> None:
    task = load("skypilot.yaml")
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["strategy"] == "EAGER_NEXT_REGION"
    assert task["secrets"] == {"RAY_AUTH_TOKEN": None}


def test_each_node_of_slurm_has_the_cpus_of_its_task() -> None:
    (step,) = re.findall(r"^ +srun .*$", NAMES["slurm.sbatch"], re.MULTILINE)
    assert '--cpus-per-task="$SLURM_CPUS_PER_TASK"' in step


def test_an_installation_for_an_unknown_kind_of_machine_is_refused() -> None:
    script = DEPLOY / "node/install.sh"
    done = subprocess.run(["bash", script, "gup"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "install.sh: head, gpu or cpu, not gup\n")


def test_slurm_tells_the_script_two_minutes_ahead_and_may_queue_it_again() -> None:
    options = re.findall(r"^#SBATCH (--.*)$", NAMES["slurm.sbatch"], re.MULTILINE)
    assert {"--signal=B:TERM@120", "--requeue", "--open-mode=append"} <= set(options)


def test_a_container_that_is_stopped_has_the_time_to_drain() -> None:
    services = load("compose.yaml")["services"]
    drain = re.search(r"DRAIN_TIMEOUT_S:-(\d+)", NAMES["node/env.sh"])
    assert drain is not None
    for service in services.values():
        assert int(service["stop_grace_period"].removesuffix("s")) > int(drain[1])
        assert service["init"] is True


def test_what_a_job_sends_is_the_project_without_weights_footage_and_tests(tmp_path: Path) -> None:
    """By Ray's own packaging of a working directory."""
    from ray._private.runtime_env.packaging import create_package

    (tmp_path / "raymat/model").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    kept = ["raymat/model/__init__.py", "jobs/refine.py", "run.yaml", "raymat/uPlot.txt"]
    lost = ["weights.pth", "raymat/big.safetensors", "clip.mp4", "tests/test_x.py", "run.log"]
    lost += [
        "nohup.out",
        "answer.txt",
    ]  # what a shell writes there while it is packed: no machine would find the package
    (tmp_path / "jobs").mkdir()
    for name in kept + lost:
        (tmp_path / name).write_text("x")
    for name in (".rayignore", ".gitignore"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    package = tmp_path.parent / f"{tmp_path.name}.zip"
    create_package(str(tmp_path), package, include_gitignore=True)
    names = {n for n in zipfile.ZipFile(package).namelist() if not n.endswith("/")}
    assert names == {*kept, ".rayignore", ".gitignore"}


def test_the_image_runs_without_roots_rights_and_holds_what_deploy_calls() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines.index("USER 1000") > max(i for i, x in enumerate(lines) if x.startswith("RUN"))
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE)
    for place in {p for line in copied for p in line.split()}:
        assert (ROOT / place).exists(), place
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    kept = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    assert {p.partition("/")[0] for line in copied for p in line.split()} <= kept
