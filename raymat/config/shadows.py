"""Files that Python would import instead of the packages that raymat needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from raymat.errors import ConfigError

PACKAGES = (
    *("aiobotocore", "botocore", "cv2", "docstring_parser", "fsspec", "grpc", "kornia_rs", "msgspec", "numpy"),
    *("PIL", "pyarrow", "yaml", "ray", "s3fs", "safetensors", "simplejpeg", "tensorboard", "torch", "tyro"),
    *("adlfs", "av", "boto3", "gcsfs", "onnx", "onnxruntime", "onnxscript", "pynvml"),
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
    for entry in filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)):
        shadow = find_shadow(Path(entry))
        if shadow is not None:
            raise ConfigError(
                f"{shadow} takes the place of the package {shadow.stem}: rename it, "
                f"or take {entry} out of PYTHONPATH"
            )


def _shadows(path: Path) -> bool:
    if path.name in PACKAGES:
        return (path / "__init__.py").exists()
    return path.suffix == ".py" and (path.stem in PACKAGES or path.stem in sys.stdlib_module_names)
