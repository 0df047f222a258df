"""Running a network over images of any size, and on which device and in which precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from astrid_pipeline.errors import ConfigError
from astrid_pipeline.learning import engine

# Tiles overlap so that each pixel is answered with enough of its surroundings. A U-Net of five levels sees 140 px
# far, but hardly beyond 64: with a margin of 32 the change at a seam is 0.5 % of the answer, with 64 less.
MARGIN = 64

# Largest tile without margins. A frame of 3072² is then done in four, whose margins are a twelfth of the work; 1664²
# pixels at 16 channels are 90 MB a plane stack in bfloat16, some 0.7 GB in all at once.
CORE = 1536


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to compute on: the one asked for, else the GPU if there is one, else the processor.

    Raises
    ------
    ConfigError
        If a GPU is asked for and there is none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "a GPU was asked for, but torch sees none", remedy="use device cpu, or install the driver"
        )
    return wanted


def half_precision(device: torch.device) -> bool:
    """Return whether bfloat16 is faster than float32 here: GPUs that have it, and processors with AVX512-BF16.

    Elsewhere a processor emulates it, ten times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    flag = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(flag()) if flag is not None else False


def describe_device(device: str | torch.device | None = None) -> str:
    """Return in words what answers whole images: `cpu (OpenVINO, bfloat16)`, `NVIDIA H200 (bfloat16)`."""
    where = pick_device(device)
    precision = "bfloat16" if half_precision(where) else "float32"
    if where.type == "cuda":
        return f"{torch.cuda.get_device_name(where)} ({precision})"
    return f"cpu ({'OpenVINO' if engine.available() else 'torch'}, {precision})"


def prepare_for_inference(network: nn.Module) -> nn.Module:
    """Return a copy that answers and cannot learn: batch normalisation folded into the convolutions before it."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for i, (first, second) in enumerate(zip(list(module), list(module)[1:], strict=False)):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[i] = fuse_conv_bn_eval(first, second)
                module[i + 1] = nn.Identity()
    network = network.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Its weights stay as they are from now on, so that it can be compiled.
    network.frozen = True  # type: ignore[assignment]
    return network


def spans(size: int, core: int, margin: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Return (from, to, keep_from, keep_to) of tiles that cover `size` pixels of one axis.

    `size` is a multiple of `stride`, and so is every number returned; the kept parts follow one another without
    gap or overlap, and each lies at least `margin` inside its tile, except at the image's own border.
    """
    count = max(1, -(-size // core))
    step = -(-size // count // stride) * stride if count > 1 else size
    out = []
    for keep_from in range(0, size, step):
        keep_to = min(keep_from + step, size)
        out.append((max(keep_from - margin, 0), min(keep_to + margin, size), keep_from, keep_to))
    return out


def _forward(network: nn.Module, batch: torch.Tensor, bf16: bool) -> torch.Tensor:
    with torch.inference_mode(), torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        return torch.sigmoid(network(batch).float())


def predict(
    network: nn.Module,
    planes: npt.NDArray[np.floating],
    *,
    device: str | torch.device | None = None,
    core: int = CORE,
    margin: int = MARGIN,
    orientations: int = 1,
) -> npt.NDArray[np.float32]:
    """Return (classes + 1, H, W) float32 probabilities of (4, H, W) planes of any size.

    Images larger than `core` are done in tiles that overlap by `margin`; the answer is the same as without tiles
    to within half a percent. With `orientations` 2, 4 or 8 the answers for turned and mirrored images are averaged.

    Parameters
    ----------
    network:
        In eval mode; `prepare_for_inference` makes it fastest.
    """
    where = pick_device(device)
    stride = int(network.stride)  # type: ignore[arg-type]
    if core % stride or margin % stride:
        raise ValueError(f"tiles and margins are multiples of {stride}, not {core} and {margin}")
    bf16 = half_precision(where)
    compiled = (
        engine.engine(network, bf16)
        if where.type == "cpu" and getattr(network, "frozen", False) and engine.available()
        else None
    )
    network = network.to(where)
    _, height, width = planes.shape
    padded = np.pad(planes, ((0, 0), (0, -height % stride), (0, -width % stride))).astype(
        np.float32, copy=False
    )
    out: npt.NDArray[np.float32] | None = None
    for turn in _orientations(orientations):
        image = torch.from_numpy(np.ascontiguousarray(_turned(padded, turn)))[None]
        answer = np.empty((0,), np.float32)
        rows = spans(image.shape[2], core, margin, stride)
        cols = spans(image.shape[3], core, margin, stride)
        for y0, y1, ky0, ky1 in rows:
            for x0, x1, kx0, kx1 in cols:
                tile = image[:, :, y0:y1, x0:x1]
                if compiled is not None:
                    whole = compiled(tile.numpy())
                else:
                    tile = tile.to(where).contiguous(memory_format=torch.channels_last)
                    whole = _forward(network, tile, bf16).cpu().numpy()
                part = whole[0, :, ky0 - y0 : ky1 - y0, kx0 - x0 : kx1 - x0]
                if not answer.size:
                    answer = np.empty((part.shape[0], *image.shape[2:]), np.float32)
                answer[:, ky0:ky1, kx0:kx1] = part
        back = _turned_back(answer, turn)
        out = back if out is None else out + back
    assert out is not None
    return np.ascontiguousarray(out[:, :height, :width] / np.float32(orientations))


def predict_batch(
    network: nn.Module, crops: npt.NDArray[np.floating], *, device: torch.device
) -> npt.NDArray[np.float32]:
    """Return (N, classes + 1, h, w) probabilities of (N, 4, h, w) crops whose sides are multiples of the stride."""
    batch = torch.from_numpy(np.ascontiguousarray(crops, dtype=np.float32)).to(device)
    return (
        _forward(network, batch.contiguous(memory_format=torch.channels_last), half_precision(device))
        .cpu()
        .numpy()
    )


def _orientations(count: int) -> Iterator[int]:
    if count not in (1, 2, 4, 8):
        raise ValueError(f"orientations are 1, 2, 4 or 8, not {count}")
    # 0-3 are quarter turns, 4-7 the same mirrored; 2 takes the half turn, which costs no change of shape.
    yield from {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3), 8: range(8)}[count]


def _turned(image: npt.NDArray[np.float32], turn: int) -> npt.NDArray[np.float32]:
    image = image[..., ::-1] if turn >= 4 else image
    return np.rot90(image, turn % 4, axes=(-2, -1))


def _turned_back(image: npt.NDArray[np.float32], turn: int) -> npt.NDArray[np.float32]:
    image = np.rot90(image, -(turn % 4), axes=(-2, -1))
    return image[..., ::-1] if turn >= 4 else image
