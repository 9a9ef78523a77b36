"""Files that Python would import instead of the packages that raymat needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.machinery import BuiltinImporter, FrozenImporter, all_suffixes
from pathlib import Path

from raymat.errors import ConfigError

PACKAGES = (
    *("aiobotocore", "aiohttp", "botocore", "click", "cv2", "docstring_parser", "fsspec", "google", "grpc", "jsonschema"),
    *("kornia_rs", "msgspec", "numpy", "PIL", "pyarrow", "yaml", "ray", "s3fs", "safetensors", "simplejpeg", "tensorboard"),
    *("torch", "tyro", "adlfs", "av", "blake3", "boto3", "gcsfs", "google_crc32c", "onnx", "onnxruntime", "onnxscript", "pynvml"),
)  # fmt: skip
"""What raymat imports, and so do the processes that Ray starts for it."""


def find_shadow(folder: Path) -> Path | None:
    """Return what Python would import from `folder` instead of an installed package or its own; None if there is nothing.

    A folder into which packages were installed, with what describes them, is no shadow of itself.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    if any(name.endswith((".dist-info", ".egg-info")) for name in names):
        return None
    return next((folder / name for name in names if _shadows(folder / name)), None)


def refuse_shadows(environment: Mapping[str, str]) -> None:
    """Raise ConfigError if PYTHONPATH, which Ray's processes inherit, leads to a file in the place of a package."""
    path = environment.get("PYTHONPATH")
    for entry in path.split(os.pathsep) if path else ():
        shadow = find_shadow(Path(entry))  # an empty entry is the working directory, to Python too
        if shadow is not None:
            where = entry or "its empty entry"
            raise ConfigError(
                f"{shadow} takes the place of the package {module_of(shadow)}: rename it, "
                f"or take {where} out of PYTHONPATH"
            )


def forget_working_directory() -> None:
    """Take the working directory, which `python -m` puts first, out of the import path, unless this raymat lies there."""
    here = Path.cwd()
    if Path(__file__).resolve().parents[2] != here and not getattr(sys.flags, "safe_path", False):
        sys.path[:] = sys.path[1:]


def _shadows(path: Path) -> bool:
    name = module_of(path)
    if name in PACKAGES:
        return True
    # What is built in, or frozen into Python, is never looked for in folders.
    found = name in sys.stdlib_module_names
    return found and not (BuiltinImporter.find_spec(name) or FrozenImporter.find_spec(name))


def module_of(path: Path) -> str:
    """Return the name of the module that a file or a folder is; "" for what Python does not import in place of a package."""
    stem, dot, suffix = path.name.partition(".")
    if dot:
        return stem if dot + suffix in all_suffixes() else ""
    return stem if (path / "__init__.py").exists() else ""
