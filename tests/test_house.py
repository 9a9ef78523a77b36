"""Laws of the house: who may import whom, what runs without Ray, what every part carries, and that the package says the truth."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import raymat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raymat"
MODULES = sorted(PACKAGE.rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

FLOORS = (
    {"errors", "version"},
    {"storage"},
    {"config", "distributed", "console", "json_lines"},
    {"model", "data", "checkpoint"},
    {"train"},
    {"analysis", "export", "inference"},
    {"cluster"},
    {"cli"},
    {"jobs", "__main__"},
)
"""The wings of the house, lowest floor first: a wing imports only those on floors below its own."""

TRAIN_FLOORS = ({"optim"}, {"observability"}, {"validation"}, {"run"}, {"loop"})
"""The same inside of raymat/train."""

MOST_FILES = 15
"""In one folder, its __init__.py aside."""

WINGS = {wing for floor in FLOORS for wing in floor}
WITHOUT_RAY = WINGS - {"cluster", "jobs", "__main__"}
BELOW_CLUSTER = WITHOUT_RAY - {"cli"}
READS_ARGUMENTS = {"raymat/config/command_line.py"}
"""Below the commands, the only file that knows of command lines."""

DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "docstring_parser": "docstring-parser",
    "google": "protobuf",
    "google_crc32c": "google-crc32c",
    "grpc": "grpcio",
    "kornia_rs": "kornia-rs",
    "mlflow": "mlflow-skinny",
    "yaml": "pyyaml",
}
"""Distributions whose name is not that of what they bring."""

EXTRAS = {
    "raymat/export/formats.py": {"onnx", "onnxruntime"},
    "raymat/inference/video_reader.py": {"av"},
    "raymat/inference/video_writer.py": {"av"},
    "raymat/train/observability/services/mlflow_service.py": {"mlflow"},
    "raymat/train/observability/services/wandb_service.py": {"wandb"},
}
"""What may be imported without being required, inside functions that say what to install."""


OF_TRITON = {
    "raymat/data/compositing/fused_colours.py",
    "raymat/data/compositing/fused_kernels.py",
}
"""Kernels for a GPU. torch's CUDA build brings Triton, its CPU build does not: they are imported where a card launches them."""


def part_of(module: Path) -> str:
    """The wing in which a file lies: raymat/data/sample_order.py is in data, raymat/__init__.py in none ("")."""
    first = module.relative_to(ROOT).parts
    if first[0] == "jobs":
        return "jobs"
    return "" if first[1] == "__init__.py" else first[1].removesuffix(".py")


@functools.cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"), str(module))


def imports_of(module: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, `from x import y` as x.y."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide where things come from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_parts(*parts: str) -> list[Path]:
    return [module for module in MODULES if part_of(module) in parts]


def name(module: Path) -> str:
    return str(module.relative_to(ROOT))


# Who may import whom.


def floor_of(wing: str, floors: Sequence[set[str]]) -> int:
    (found,) = (i for i, floor in enumerate(floors) if wing in floor)
    return found


@pytest.mark.parametrize("module", [m for m in [*MODULES, *JOBS] if part_of(m)], ids=name)
def test_imports_point_down(module: Path) -> None:
    mine = part_of(module)
    others = {i.split(".")[1] for i in imports_of(module) if i.startswith("raymat.")}
    below = {wing for floor in FLOORS[: floor_of(mine, FLOORS)] for wing in floor}
    assert others - {mine} <= below


@pytest.mark.parametrize(
    "module", [m for m in in_parts("train") if m.parent.name != "train"], ids=name
)
def test_imports_inside_of_train_point_down(module: Path) -> None:
    mine = module.relative_to(PACKAGE / "train").parts[0]
    others = {i.split(".")[2] for i in imports_of(module) if i.startswith("raymat.train.")}
    below = {wing for floor in TRAIN_FLOORS[: floor_of(mine, TRAIN_FLOORS)] for wing in floor}
    assert others - {mine} <= below


def test_no_module_imports_itself_through_others() -> None:
    """At import time, in any wing."""
    names = {module_name(module): module for module in MODULES}
    needs = {
        this: {
            other for i in imports_of(path) for other in (i, i.rpartition(".")[0]) if other in names
        }
        for this, path in names.items()
    }
    for start in needs:
        seen, waiting = set(), list(needs[start])
        while waiting:
            this = waiting.pop()
            assert this != start, f"{start} imports itself"
            if this not in seen:
                seen.add(this)
                waiting += needs[this]


def module_name(module: Path) -> str:
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_two_wings_have_a_file_of_one_name() -> None:
    places: dict[str, set[str]] = {}
    for module in MODULES:
        if module.name != "__init__.py":
            places.setdefault(module.name, set()).add(part_of(module))
    assert {file: wings for file, wings in places.items() if len(wings) > 1} == {}


def test_no_two_files_of_tests_have_one_name() -> None:
    """Of two, pytest would run the first alone."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_folder_is_too_large_to_look_through() -> None:
    for folder in {module.parent for module in MODULES}:
        assert len([*folder.glob("*.py")]) - 1 <= MOST_FILES, folder


def test_only_cluster_imports_ray() -> None:
    importers = {part_of(m) for m in [*MODULES, *JOBS] if "ray" in roots_of(m)}
    assert importers <= {"cluster"}


RAY_INTERNALS = {
    "raymat/cluster/ec2_provider.py",
    "raymat/cluster/ray_autoscaler_internals.py",
    "raymat/cluster/ray_data_internals.py",
    "raymat/cluster/ray_internals.py",
    "raymat/cluster/ray_train_internals.py",
}
"""The only files that may use what Ray changes without notice, and tests/cluster/test_ray_internals.py and its neighbours try."""

PRIVATE_RAY = re.compile(r"^ray\b.*\.(_\w+|core|experimental)\b|^ray\.autoscaler\b", re.MULTILINE)


def test_private_interfaces_of_ray_are_used_in_one_place() -> None:
    assert PRIVATE_RAY.search("ray.train.v2._internal.exceptions.X")
    users = {
        name(m)
        for m in in_parts("cluster")
        if PRIVATE_RAY.search("\n".join([*imports_of(m), attributes_of(m)]))
    }
    assert users == RAY_INTERNALS


def test_networks_need_nothing_but_torch_and_a_file_to_load() -> None:
    allowed = {"torch", "raymat", "fsspec", "safetensors", "numpy"}
    for module in in_parts("model"):
        assert roots_of(module) - sys.stdlib_module_names <= allowed, name(module)


def test_read_tasks_need_no_torch() -> None:
    on_the_device = {"composite.py", "photometric.py"}
    importers = {m for m in in_parts("data") if "torch" in roots_of(m)}
    assert {m.name for m in importers if m.parent.name != "compositing"} <= on_the_device


@functools.cache
def roots_of(module: Path) -> set[str]:
    return {imported.split(".")[0] for imported in imports_of(module)}


def test_nothing_imports_its_tests() -> None:
    for module in [*MODULES, *JOBS]:
        assert not roots_of(module) & {"tests", "pytest", "conftest", "benchmarks"}, name(module)
    for module in BENCHMARKS:
        assert not roots_of(module) & {"tests", "pytest", "conftest"}, name(module)


REFUSE_AND_IMPORT = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ImportError(f"{{name}} is not here")

sys.meta_path.insert(0, Refuse())
for name in {names!r}:
    importlib.import_module(name)
"""


def import_without(refused: set[str], modules: list[Path]) -> str:
    """Import the modules in a process in which the refused packages cannot be; what it printed."""
    names = [module_name(module) for module in modules]
    script = REFUSE_AND_IMPORT.format(refused=refused, names=names)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stderr


def test_everything_but_cluster_imports_without_ray_and_torchvision() -> None:
    modules = [m for m in in_parts("", *WITHOUT_RAY) if name(m) not in OF_TRITON]
    assert import_without({"ray", "torchvision", "triton"}, modules) == ""


def test_what_decodes_pictures_imports_without_torch() -> None:
    modules = [m for m in in_parts("data") if not {"torch", "triton"} & roots_of(m)]
    assert import_without({"ray", "torch"}, modules) == ""


def test_a_driver_and_rays_controller_import_without_torch() -> None:
    """It costs each of them seconds before the first step."""
    modules = [m for m in in_parts("cluster") if m.parent.name in ("driver", "controller")]
    assert import_without({"torch"}, modules) == ""


# What fits into a head.

SET_BY_BASE: dict[str, set[str]] = {}
"""Attributes that a base class of another package has."""

MOST_LINES = {"class": 150, "function": 49, "file": 325}
"""With docstrings and comments. What is larger is two things."""
MOST_PARAMETERS = 7
"""Of a function, self aside. Not of what Triton compiles: a kernel is handed addresses and numbers, and what it calls the rest."""


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_files_classes_and_functions_stay_small(module: Path) -> None:
    nodes = [*ast.walk(tree_of(module))]
    kinds = {ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
    large = {
        node.name: node.end_lineno - node.lineno + 1
        for node in nodes
        if isinstance(node, tuple(kinds))
        and node.end_lineno - node.lineno >= MOST_LINES[kinds[type(node)]]
    }
    assert large == {}
    assert len(module.read_text(encoding="utf-8").splitlines()) <= MOST_LINES["file"]


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_nothing_is_handed_more_than_seven_things(module: Path) -> None:
    handed = {}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_kernel(node):
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            handed[node.name] = len([g for g in given if g.arg not in ("self", "cls")])
    assert {function: count for function, count in handed.items() if count > MOST_PARAMETERS} == {}


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_objects_are_born_whole(module: Path) -> None:
    """An attribute that a method other than __init__ makes is missing until that method has run."""
    for owner in ast.walk(tree_of(module)):
        if not isinstance(owner, ast.ClassDef):
            continue
        methods = [n for n in owner.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        born = {
            n.target.id
            for n in owner.body
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        }
        made: dict[str, set[str]] = {}
        for method in methods:
            made[method.name] = {
                node.attr
                for node in ast.walk(method)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            }
        born |= made.pop("__init__", set())
        late = {attribute for attributes in made.values() for attribute in attributes} - born
        assert late - SET_BY_BASE.get(owner.name, set()) == set(), owner.name


# What is left to the edge.


@pytest.mark.parametrize("module", in_parts(*BELOW_CLUSTER), ids=name)
def test_arguments_and_the_environment_are_read_at_the_edge_alone(module: Path) -> None:
    if name(module) not in READS_ARGUMENTS:
        assert not roots_of(module) & {"argparse", "tyro", "click"}
    source = ast.unparse(tree_of(module))
    assert not re.search(r"\bos\.(environ|getenv)\b|\bsys\.argv\b", source)


OUTLIVES_ANY_FAULT = {
    "raymat/train/run/lease/lease.py",
    "raymat/train/run/lease/lease_watch.py",
    "raymat/train/observability/services/service_logger.py",
}
"""Threads upon which rests that a run has one driver, and one that calls packages of others: they log what nobody expects, with
its traceback, and go on."""


@pytest.mark.parametrize("module", in_parts(*BELOW_CLUSTER), ids=name)
def test_errors_are_caught_by_name(module: Path) -> None:
    broad = [
        node.lineno
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        and not (name(module) in OUTLIVES_ANY_FAULT and "log.exception(" in ast.unparse(node))
    ]
    assert broad == [], "lines with an except for everything"


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_no_draw_comes_from_a_global_generator(module: Path) -> None:
    shared = re.findall(
        r"\brandom\.(?!Random\b|SystemRandom\b|Generator\b|Philox\b)\w+", attributes_of(module)
    )
    assert shared == []
    drawing = r"torch\.(rand|randn|randint|randperm|bernoulli|multinomial|normal)"
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not re.fullmatch(r"torch\.(cuda\.)?(manual_)?seed(_all)?", called), node.lineno
            if re.fullmatch(drawing, called):
                assert "generator" in {k.arg for k in node.keywords}, f"line {node.lineno}"


def attributes_of(module: Path) -> str:
    """The dotted names that a file uses, one a line; numpy's random is `np.random`, python's `random`."""
    nodes = ast.walk(tree_of(module))
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute))


# What every part carries.


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_every_module_and_every_public_function_and_class_says_what_it_is(module: Path) -> None:
    tree = tree_of(module)
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []
    assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize("job", JOBS, ids=name)
def test_jobs_only_parse_and_call(job: Path) -> None:
    assert len(job.read_text(encoding="utf-8").splitlines()) < 60


def test_there_is_a_job_for_each_stage() -> None:
    assert {"base.py", "refine.py"} <= {job.name for job in JOBS}


def test_every_command_leads_somewhere() -> None:
    """Read, not run: the commands' modules may need Ray."""
    source = (PACKAGE / "cli/main.py").read_text(encoding="utf-8")
    targets = re.findall(r'"(raymat[.\w]*):(\w+)"', source)
    assert targets
    for module, function in targets:
        tree = tree_of(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, module


# What the package says of itself.


def test_the_version_is_one() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert PROJECT["version"] == raymat.__version__ == newest[1]


def test_the_licence_is_apache_2() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def requirements(*extras: str) -> dict[str, str]:
    """Distribution name to version range, of the package itself and of some of its extras."""
    wanted = [*PROJECT["dependencies"]]
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    pairs = (re.match(r"([\w-]+)(?:\[[^]]*\])?\s*([^;]*)", line) for line in wanted)
    return {pair[1].lower(): pair[2].strip() for pair in pairs if pair}


@pytest.mark.parametrize("module", [*MODULES, *JOBS], ids=name)
def test_what_is_imported_is_required(module: Path) -> None:
    others = roots_of(module) - sys.stdlib_module_names - {"raymat"}
    missing = {o for o in others if DISTRIBUTIONS.get(o, o).lower() not in requirements()}
    brought = {"triton"} if name(module) in OF_TRITON else set()
    assert missing - EXTRAS.get(name(module), set()) - brought == set()


@pytest.mark.parametrize("place", EXTRAS)
def test_what_an_extra_brings_is_imported_where_it_is_used(place: str) -> None:
    """Else the module could not be imported without the extra."""
    top = [n for n in tree_of(ROOT / place).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    imported = ast.unparse(ast.Module(body=list(top), type_ignores=[]))
    assert not [extra for extra in EXTRAS[place] if re.search(rf"\b{extra}\b", imported)]
    brought = requirements("onnx", "video", "wandb", "mlflow").keys()
    assert brought >= {DISTRIBUTIONS.get(extra, extra) for extra in EXTRAS[place]}


def constraints() -> dict[str, list[str]]:
    """Distribution name to the versions that constraints.txt has for it, one for each kind of Python."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_the_tested_versions_lie_in_the_ranges() -> None:
    from packaging.specifiers import SpecifierSet

    tested = constraints()
    for distribution, wanted in requirements(*PROJECT["optional-dependencies"]).items():
        assert distribution in tested
        for version in tested[distribution]:
            assert version in SpecifierSet(wanted), f"{distribution} {version} is not {wanted}"


def test_torch_and_ray_are_the_ones_that_were_measured() -> None:
    assert constraints()["torch"] == ["2.13.0"]
    assert constraints()["ray"] == ["2.60.0"]


def test_what_runs_here_is_what_is_constrained() -> None:
    """A test run with other versions proves something else; only what is installed is compared."""
    tested = constraints()
    for distribution in importlib.metadata.distributions():
        canonical = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if canonical in requirements("dev") and canonical in tested:
            assert distribution.version.split("+")[0] in tested[canonical], canonical
