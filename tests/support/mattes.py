"""Networks, pictures and calls by hand for tests of matting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raymat.config.sections import ModelConfig
from raymat.model.matting import MattingBase, build

Pixels = NDArray[np.uint8]


def network(stage: Any, seed: int = 0) -> MattingBase:
    """A new network, whose outputs are what random weights give."""
    return build(stage, ModelConfig(backbone="mobilenetv2"), seed).eval()


def letting_through(stage: Any, alpha: float = 1.0) -> MattingBase:
    """A network whose foreground is the source, to the bit, and whose alpha is `alpha` everywhere."""
    made = network(stage)
    last = [made.decoder.conv4, *([made.refiner.conv4] if stage == "refine" else [])]
    with torch.no_grad():
        for layer in last:
            layer.weight.zero_()
            layer.bias.zero_()
            layer.bias[0] = alpha
    return made


def saved(made: MattingBase, folder: Path) -> str:
    """A weights file of it."""
    path = folder / "network.pth"
    torch.save(made.state_dict(), path)
    return str(path)


def picture(width: int, height: int, seed: int) -> Pixels:
    """A smooth picture with noise, RGB."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (4, 4, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = generator.integers(-8, 9, smooth.shape)
    return np.clip(smooth.astype(np.int64) + noise, 0, 255).astype(np.uint8)


def scene(seed: int = 0) -> Pixels:
    """A wall of 640 x 360 with much on it."""
    generator = np.random.default_rng(seed)
    made = np.full((360, 640, 3), 128, np.uint8)
    for _ in range(300):
        x, y = int(generator.integers(0, 640)), int(generator.integers(0, 360))
        w, h = (int(generator.integers(8, 60)) for _ in range(2))
        colour = [int(c) for c in generator.integers(0, 256, 3)]
        cv2.rectangle(made, (x, y), (x + w, y + h), colour, -1, cv2.LINE_AA)
    return made


def write(path: Path, pixels: NDArray[Any]) -> Path:
    """Write RGB, RGBA or grey pixels to a file; makes folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(
            pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        )
    assert cv2.imwrite(str(path), pixels)
    return path


def read(path: Path) -> NDArray[Any]:
    """Read a file as RGB, RGBA or grey pixels, as deep as it is."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, path
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(
            pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        )
    return pixels


@torch.no_grad()
def by_hand(made: MattingBase, source: Pixels, background: Pixels) -> dict[str, NDArray[Any]]:
    """Alpha, foreground, cut-out and error as 8-bit pixels, from a call of the network and nothing of the command."""
    height, width = source.shape[:2]

    def tensor(pixels: Pixels) -> Tensor:
        rows = np.minimum(np.arange((height + 3) // 4 * 4), height - 1)
        columns = np.minimum(np.arange((width + 3) // 4 * 4), width - 1)
        return (
            torch.from_numpy(pixels[rows][:, columns] / np.float32(255))
            .permute(2, 0, 1)[None]
            .contiguous()
        )

    outputs = made(tensor(source), tensor(background))
    pha, fgr = (x[0, :, :height, :width].permute(1, 2, 0).numpy() for x in outputs[:2])
    err = outputs[2] if len(outputs) == 4 else outputs[4]
    size = (-(-height // 4) * 4, -(-width // 4) * 4)
    whole = F.interpolate(err, size, mode="bilinear", align_corners=False)
    fgr = fgr * (pha > 0)

    def eight(x: NDArray[Any]) -> NDArray[Any]:
        return np.rint(x * np.float32(255)).astype(np.uint8)

    return {
        "pha": eight(pha[..., 0]),
        "fgr": eight(fgr),
        "com": eight(np.concatenate([fgr, pha], axis=2)),
        "err": eight(whole[0, 0, :height, :width].numpy()),
    }
