"""Laws of the command line: defaults, then YAML, then flags; mistakes are one line with the closest right word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raymat.cli import main
from raymat.config.flags import EXAMPLES, parse_run
from raymat.config.run import RunConfig, to_dict
from raymat.config.values import Range
from raymat.errors import ConfigError, StorageError
from tests.support.paths import ROOT

REQUIRED = ["--name", "r", "--synthetic", "8"]


def flat(*argv: str, stage: Any = "base") -> dict[str, Any]:
    return to_dict(parse_run(stage, [*REQUIRED, *argv]))


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_run("base", [*REQUIRED, *argv])
    return caught.value.line


@pytest.fixture
def yaml_file(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# Flags.


def test_every_documented_flag_has_exactly_its_name() -> None:
    argv = """--dataset s3://d --backgrounds s3://b --storage s3://runs --name r --workers 1:4 --device cpu
        --precision bf16 --backbone mobilenetv2 --init s3://w.pth --batch-size 4 --resolution 1024 --crop 256:512
        --epochs 14.3 --epoch-examples 1000000 --checkpoint-interval 7 --valid-interval 9 --valid-examples 11
        --log-loss-interval 13 --log-images-interval 15 --seed 17 --keep 2 --no-scaled-decode --threads 2"""
    config = parse_run("refine", argv.split())
    assert config.stage == "refine"
    assert (config.name, config.storage) == ("r", "s3://runs")
    assert (config.data.dataset, config.data.backgrounds) == ("s3://d", "s3://b")
    assert config.workers.workers == Range(1, 4)
    assert (config.data.resolution, config.data.crop) == (1024, Range(256, 512))
    assert (config.data.batch_size, config.data.seed) == (4, 17)
    assert config.data.scaled_decode is False
    assert (config.model.backbone, config.model.init) == ("mobilenetv2", "s3://w.pth")
    assert (config.length.epochs, config.length.epoch_examples) == (14.3, 1_000_000)
    assert (config.checkpoint.checkpoint_interval.steps, config.checkpoint.keep) == (7, 2)
    assert (config.log.valid_interval, config.log.valid_examples) == (9, 11)
    assert (config.log.log_loss_interval, config.log.log_images_interval) == (13, 15)
    assert (config.workers.device, config.workers.threads) == ("cpu", 2)
    assert config.optim.precision == "bf16"
    assert parse_run("base", [*REQUIRED, "--steps", "3"]).length.steps == 3


def test_without_flags_the_stage_decides() -> None:
    assert (flat()["batch_size"], flat(stage="refine")["batch_size"]) == (8, 4)


def test_flags_may_use_an_equals_sign_and_underscores() -> None:
    assert flat("--batch-size=4")["batch_size"] == 4
    assert flat("--batch_size", "4")["batch_size"] == 4


def test_a_switch_is_set_and_unset() -> None:
    assert flat("--scaled-decode")["scaled_decode"] is True
    assert flat("--no-scaled-decode")["scaled_decode"] is False


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--batch-sizes", "4"], "unknown flag --batch-sizes: did you mean --batch-size?"),
        (["--worker=2"], "unknown flag --worker: did you mean --workers?"),
        (["--no-scaled-decoding"], "unknown flag --no-scaled-decoding: did you mean --no-scaled-decode?"),
        (["--zzz"], "unknown flag --zzz: --help-all lists what there is"),
        (["--bach-size", "4"], "unknown flag --bach-size: did you mean --batch-size?"),
        (["--epoch", "4"], "unknown flag --epoch: did you mean --epoch-examples or --epochs?"),
        (["--lr", "4"], "unknown flag --lr: did you mean --lr-aspp, --lr-backbone, --lr-decoder or --lr-refiner?"),
        (["--gpus", "4"], "unknown flag --gpus: --help-all lists what there is"),
        (["--no-backbone"], "unknown flag --no-backbone: did you mean --backbone?"),
        (["--batch-size", "many"], "--batch-size: expected a whole number, got 'many'"),
        (["--epochs", "nan"], "--epochs: expected a number, got 'nan'"),
        (["--device", "gpu"], "--device: expected one of auto, cpu, cuda, got 'gpu'"),
        (["--crop", "512:256"], "--crop: expected MIN:MAX with 0 < MIN <= MAX, got 512:256"),
        (["--crop", "9:33"], "--crop must be multiples of 4, got 9:33"),
    ],
)  # fmt: skip
def test_a_mistaken_flag_is_one_line(argv: list[str], line: str) -> None:
    assert refusal(*argv) == line


@pytest.mark.parametrize(
    ("argv", "words"), [(["--keep"], "--keep"), (["junk"], "junk"), (["-x"], "-x")]
)
def test_what_the_parser_refuses_is_one_line_without_a_box(argv: list[str], words: str) -> None:
    line = refusal(*argv)
    assert words in line
    assert not re.search(r"[│─╭\n]", line)


def test_help_shows_every_flag_with_its_meaning_and_the_stages_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_run("refine", ["--help-all"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    for flag in ("--config", "--dataset", "--crop N|MIN:MAX", "--no-scaled-decode", "--workers"):
        assert flag in shown
    assert "GLOBAL batch in examples" in shown
    assert "(default: 2048)" in shown


@pytest.mark.parametrize("stage", ["base", "refine"])
def test_help_is_short_with_ten_options_and_two_examples_that_can_be_pasted(
    stage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_run(stage, ["--name", "x", "-h"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"^[^\w\n]+--[a-z-]+ [A-Z]", shown, re.MULTILINE)) == 10
    assert len(shown.splitlines()) < 45
    assert all(f"  {line.strip()}" in shown for line in EXAMPLES[stage].splitlines())
    examples = re.findall(rf"^ +raymat {stage} ((?:.*\\\n)*.*)$", EXAMPLES[stage], re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        config = parse_run(stage, shlex.split(example.replace("\\\n", " ")))
        assert (config.stage, config.storage) == (stage, "./runs")
        if config.model.init:  # what the examples of base have made
            assert f"--name {config.model.init.removeprefix('runs/')} " in EXAMPLES["base"]


def test_the_overview_loads_no_parser_and_no_torch() -> None:
    """40 ms of CPU time, where tyro, yaml and torch take a second."""
    script = """
import sys
from raymat.cli.main import main
main(["--help"])
assert not {"tyro", "yaml", "torch", "ray", "numpy"} & {*sys.modules}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_command_imports_is_never_looked_through_for_garbage() -> None:
    program = (
        "import gc; from raymat.cli.main import main; main(['diff', '/a', '/b']);"
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000, gc.get_stats()[2]['collections'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True True 0"


def test_the_module_is_run_as_the_command_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raymat", "trian"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("raymat: error: unknown command 'trian'")


def test_the_demos_help_needs_no_ray() -> None:
    script = """
import sys
sys.modules["ray"] = None
from raymat.cli.main import main
main(["demo", "--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "a worker" in done.stdout


# YAML.


def test_yaml_overrides_defaults_and_flags_override_yaml(yaml_file: Any) -> None:
    source = yaml_file("batch-size: 2\nkeep: 9\n")
    got = flat("--config", source, "--keep", "1")
    assert (got["batch_size"], got["keep"], got["valid_examples"]) == (2, 1, 50)


def test_yaml_keys_are_flag_names_with_dashes_or_underscores(yaml_file: Any) -> None:
    got = flat("--config", yaml_file("checkpoint_interval: 3\nvalid-interval: 4\n"))
    assert (got["checkpoint_interval"], got["valid_interval"]) == (3, 4)


def test_yaml_values_mean_what_they_mean_as_flags(yaml_file: Any) -> None:
    text = 'workers: 1:4\nlr-aspp: 1e-4\ncrop: "64:128"\nscaled-decode: no\ninit: null\nbackbone: resnet101  # big\n'
    got = flat("--config", yaml_file(text))
    assert got["workers"] == "1:4"  # and not 64, which YAML 1.1 makes of it
    assert got["lr_aspp"] == 0.0001  # and not text, which YAML 1.1 makes of it
    assert (got["crop"], got["scaled_decode"]) == ("64:128", False)
    assert (got["init"], got["backbone"]) == (None, "resnet101")


def test_a_quoted_null_is_text(yaml_file: Any) -> None:
    assert flat("--config", yaml_file('storage: "null"\n'))["storage"] == "null"


def test_an_empty_yaml_file_changes_nothing(yaml_file: Any) -> None:
    assert flat("--config", yaml_file("# nothing yet\n")) == flat()


def test_a_flag_takes_the_place_of_its_alternative_in_yaml(yaml_file: Any) -> None:
    source = yaml_file("epochs: 3\ndataset: s3://d\nbackgrounds: s3://b\n")
    got = to_dict(
        parse_run("base", ["--name", "r", "--config", source, "--steps", "5", "--synthetic", "8"])
    )
    assert (got["steps"], got["epochs"]) == (5, None)
    assert (got["synthetic"], got["dataset"], got["backgrounds"]) == (8, None, None)


def test_alternatives_in_one_layer_are_still_refused(yaml_file: Any) -> None:
    assert "not both" in refusal("--config", yaml_file("epochs: 3\nsteps: 4\n"))
    assert "not both" in refusal("--epochs", "3", "--steps", "4")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keep: 2\nbatchsize: 4\n", ":2: unknown key 'batchsize': did you mean batch_size?"),
        ("zzz: 4\n", ":1: unknown key 'zzz': --help-all lists what there is"),
        ("config: other.yaml\n", ":1: unknown key 'config'"),
        ("keep: 2\nkeep: 3\n", ":2: 'keep' is given twice"),
        ("keep: two\n", ":1: --keep: expected a whole number, got 'two'"),
        ("crop: [256, 512]\n", ":1: 'crop' must be a single value such as 4 or 256:512"),
        ("data:\n  crop: 256\n", ":1: unknown key 'data'"),
        ("scaled-decode: maybe\n", ":1: --scaled-decode: expected true or false, got 'maybe'"),
        ("device: gpu\n", ":1: --device: expected one of auto, cpu, cuda, got 'gpu'"),
        ("- keep\n", ": expected one `name: value` a line"),
        ("keep: [\n", ": not valid YAML: "),
    ],
)  # fmt: skip
def test_a_mistake_in_yaml_is_one_line_with_its_place(
    yaml_file: Any, text: str, words: str
) -> None:
    source = yaml_file(text)
    line = refusal("--config", source)
    assert f"{source}{words}" in line
    assert "\n" not in line


def test_a_missing_yaml_file_is_one_line(tmp_path: Path) -> None:
    assert (
        refusal("--config", f"{tmp_path}/no.yaml") == f"--config {tmp_path}/no.yaml: no such file"
    )
    assert "cannot be read" in refusal("--config", str(tmp_path))
    assert "nosuch" in refusal("--config", "nosuch://x/run.yaml")


def test_yaml_is_read_from_any_url() -> None:
    import fsspec

    with fsspec.open("memory://configs/run.yaml", "w") as file:
        file.write("keep: 4\n")
    assert flat("--config", "memory://configs/run.yaml")["keep"] == 4


# The command.


def launch_that(monkeypatch: pytest.MonkeyPatch, does: Any) -> None:
    """Stand in for the launcher, which would start Ray."""
    module = types.SimpleNamespace(timed_fit=does)
    monkeypatch.setitem(sys.modules, "raymat.cluster.driver.launch", module)


def test_a_job_trains_what_its_flags_say_and_prints_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[RunConfig] = []

    def trains(config: RunConfig) -> str:
        seen.append(config)
        return "runs/r is complete"

    launch_that(monkeypatch, trains)
    assert main.job_main("refine", [*REQUIRED, "--keep", "2"]) == 0
    assert main.main(["base", *REQUIRED]) == 0
    assert [(c.stage, c.checkpoint.keep) for c in seen] == [("refine", 2), ("base", 3)]
    assert capsys.readouterr().out == "runs/r is complete\n" * 2


def test_what_the_user_can_mend_is_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(config: RunConfig) -> str:
        raise StorageError("s3://b/r: no write access\n give the role s3:PutObject")

    launch_that(monkeypatch, fails)
    assert main.job_main("base", REQUIRED) == 2
    assert (
        capsys.readouterr().err
        == "raymat: error: s3://b/r: no write access give the role s3:PutObject\n"
    )


def test_an_interrupt_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(config: RunConfig) -> str:
        raise KeyboardInterrupt

    launch_that(monkeypatch, stopped)
    assert main.job_main("base", REQUIRED) == 130
    assert capsys.readouterr().err == "raymat: interrupted\n"


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: RunConfig) -> str:
        raise ZeroDivisionError

    launch_that(monkeypatch, broken)
    with pytest.raises(ZeroDivisionError):
        main.job_main("base", REQUIRED)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["dif"], "did you mean diff?"),
        (["train"], "did you mean base, refine or demo?"),
        (["trian"], "did you mean base, refine or demo?"),
        (["resume"], "did you mean base, refine or demo?"),
        (["zzz"], "there are base, refine"),
    ],
)
def test_an_unknown_command_is_one_line(
    argv: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(argv) == 2
    assert words in capsys.readouterr().err


def test_help_with_a_command_is_that_commands_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["help", "runs"])
    assert capsys.readouterr().out.startswith("usage: raymat runs ")


@pytest.mark.parametrize("argv", [["--version"], ["-V"], ["version"]])
def test_the_version_is_told_in_each_usual_way(
    argv: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(argv) == 0
    assert capsys.readouterr().out == "raymat 0.1.0\n"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_command(
    argv: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(argv) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in main.COMMANDS)


@pytest.mark.parametrize("job", ["base", "refine"])
def test_a_wrong_flag_of_a_job_costs_no_traceback_and_no_ray(job: str) -> None:
    script = f"""
import runpy, sys
sys.modules["ray"] = None
sys.argv = ["{job}.py", "--bakcbone", "resnet50"]
runpy.run_path("jobs/{job}.py", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "raymat: error: unknown flag --bakcbone: did you mean --backbone?\n"
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["--help", "base --help", "export --help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_read_enough_costs_no_traceback(command: str, unbuffered: str) -> None:
    raymat = f"{sys.executable} -c 'import sys; from raymat.cli.main import main; sys.exit(main())'"
    done = subprocess.run(
        ["bash", "-c", f"{raymat} {command} | head -c 1; exit ${{PIPESTATUS[0]}}"],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(done.stdout) == 1
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # all may have been written before the reader went


def test_a_python_that_lacks_what_raymat_needs_is_named_in_one_line() -> None:
    """As a job's may, on machines where raymat is not installed."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from raymat.cli.main import job_main; sys.exit(job_main('base', []))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", start], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"raymat: error: {sys.executable} lacks yaml, which raymat needs: take the Python that raymat is installed for; "
        "a job has the one of the machine that it starts on\n"
    )
