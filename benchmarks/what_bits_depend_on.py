"""Which settings change the bits of a training step and of pictures, on this machine.

Takes two steps of base and of refine, and decodes and warps pictures, each in a process of its own under one setting:
an environment variable or a number of threads. Prints for each setting which results differ from those without it.

    python benchmarks/what_bits_depend_on.py
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"threads": "2"},
    {"OMP_NUM_THREADS": "2"},
    {"MKL_NUM_THREADS": "2"},
    {"OMP_DYNAMIC": "TRUE"},
    {"MKL_DYNAMIC": "FALSE"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"DNNL_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_CPU_ISA_HINTS": "PREFER_YMM"},
    {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"},
    {"ONEDNN_DEFAULT_FPMATH_MODE": "ANY"},
    {"TORCH_MKLDNN_MATMUL_MIN_DIM": "1"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_CBWR": "AVX2"},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    {"MKL_DEBUG_CPU_TYPE": "5"},
    {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
    {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    {"NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX AVX2 FMA3"},
    {"OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2"},
    {"OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX,SSE4.2,SSE4.1"},
    {"OPENCV_IPP": "disabled"},
    {"OPENCV_IPP": "sse42"},
    {"JSIMD_FORCENONE": "1"},
    {"JSIMD_FORCESSE2": "1"},
    {"LD_PRELOAD": ""},
    {"MALLOC_PERTURB_": "165"},
)


def steps(stage: str, precision: str) -> str:
    """Return the digest of a network after two steps of training."""
    import numpy as np
    import torch

    from raymat.config.sections import ModelConfig, OptimConfig
    from raymat.data.batch import MicroBatch
    from raymat.data.sample_order import Example
    from raymat.distributed.world import World
    from raymat.model.matting import build
    from raymat.train.loop.train_step import TrainStep
    from raymat.train.optim.forward import ForwardPass

    cpu = torch.device("cpu")
    network = build(stage, ModelConfig(backbone="mobilenetv2", refine_sample_pixels=400), 0)
    forward = ForwardPass(stage=stage, precision=precision, seed=0, resolution=64, device=cpu)
    step = TrainStep(network, forward, World(), OptimConfig(precision=precision))
    rates = {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4, "refiner": 3e-4}
    for number in range(2):
        draw = np.random.default_rng(number)
        pictures = [draw.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8) for _ in range(2)]
        alpha = draw.integers(0, 256, (4, 64, 64), dtype=np.uint8)
        examples = tuple(Example(4 * number + i, i, i) for i in range(4))
        batch = MicroBatch(number, examples, pictures[0], alpha, pictures[1], (), True)
        step(batch, 4, rates)
    found = hashlib.sha256()
    for tensor in network.state_dict().values():
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def pictures() -> dict[str, str]:
    """Return the digests of decoded, shrunk, warped and drawn pictures."""
    import cv2
    import numpy as np
    import simplejpeg

    from raymat.data.decode import EncodedImage
    from raymat.data.synthetic.pictures import synthetic_background, synthetic_pair
    from raymat.data.warp import crop_map, draw_pair_warp, warp_into

    cv2.setNumThreads(1)
    smooth = cv2.resize(
        np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8), (300, 200)
    )
    data = {
        "jpeg": simplejpeg.encode_jpeg(smooth, 90),
        "png": cv2.imencode(".png", smooth)[1].tobytes(),
    }
    found = {"resize": smooth.tobytes()}
    for kind, encoded in data.items():
        for scale in (1, 2):
            decoded = EncodedImage(encoded, kind).decode(scale)
            found[f"{kind}/{scale}"] = decoded.tobytes()
    out, parts = np.empty((96, 96, 3), np.uint8), []
    for number in range(20):
        warp = draw_pair_warp(0, number, "base", True)
        warp_into(out, smooth, crop_map(warp, (300, 200), 128, (96, 96)))
        parts.append(out.tobytes())
    found["warp"] = b"".join(parts)
    made = [*synthetic_pair(0, 1, 96), synthetic_background(0, 1, 96)]
    found["synthetic"] = b"".join(picture.tobytes() for picture in made)
    return {name: hashlib.sha256(value).hexdigest() for name, value in found.items()}


def measure(threads: int) -> dict[str, str]:
    """Return the digest of each result in this process."""
    import torch

    found = pictures()
    torch.set_num_threads(threads)
    for stage in ("base", "refine"):
        for precision in ("fp32", "bf16", "fp64"):
            found[f"{stage} {precision}"] = steps(stage, precision)
    return found


def main() -> None:
    """Print a line for each setting."""
    if sys.argv[1:]:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    plain: dict[str, str] = {}
    for setting in ({}, *SETTINGS):
        environment = {k: v for k, v in setting.items() if k != "threads"}
        done = subprocess.run(
            [sys.executable, __file__, setting.get("threads", "1")],
            env=os.environ | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        told = " ".join(f"{k}={v}" for k, v in setting.items()) or "nothing"
        if done.returncode:
            print(f"{told}: failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(done.stdout)
        plain = plain or found
        changed = [name for name in found if found[name] != plain[name]]
        print(f"{told}: {', '.join(changed) or '-'}", flush=True)


if __name__ == "__main__":
    main()
