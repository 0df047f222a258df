"""From pixel values to colours: pooling to the size of a panel, robust stretches, two colour scales."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]
RGB = npt.NDArray[np.uint8]

#: Enough values for a median to a few per mille of σ, few enough to sort in a millisecond or two.
_SAMPLE = 50_000

#: A person sees a 5 σ source on ±8 σ clearly, and the noise as texture only.
SCORE_LIMIT = 8.0

_GREY = ((0.0, (9, 11, 17)), (0.5, (128, 133, 142)), (1.0, (255, 252, 244)))
_DIVERGING = (
    (-1.0, (176, 233, 255)),
    (-0.62, (46, 134, 214)),
    (-0.35, (20, 44, 78)),
    (0.0, (13, 15, 22)),
    (0.35, (78, 37, 19)),
    (0.62, (221, 102, 32)),
    (1.0, (255, 236, 176)),
)
#: Unusable pixels: a colour that neither scale has.
MASKED = (58, 38, 74)


def _lookup(stops: tuple[tuple[float, tuple[int, int, int]], ...]) -> RGB:
    at = np.linspace(stops[0][0], stops[-1][0], 256)
    position = [stop for stop, _ in stops]
    return np.stack([np.interp(at, position, [c[k] for _, c in stops]) for k in range(3)], -1).astype(
        np.uint8
    )


_GREY_TABLE, _DIVERGING_TABLE = _lookup(_GREY), _lookup(_DIVERGING)
TABLES = (_GREY_TABLE, _DIVERGING_TABLE)


def robust(values: npt.ArrayLike) -> tuple[float, float]:
    """Return the median and 1.4826 × MAD of the finite values; (0, 1) where there are none or they are all alike."""
    flat = np.asarray(values, np.float32).ravel()
    flat = flat[:: max(1, flat.size // _SAMPLE)]
    flat = flat[np.isfinite(flat)]
    if flat.size == 0:
        return 0.0, 1.0
    middle = float(np.median(flat))
    spread = 1.4826 * float(np.median(np.abs(flat - middle)))
    return middle, spread if spread > 0 else float(flat.std()) or 1.0


def pool(image: npt.ArrayLike, size: int, *, peak: bool = False) -> Plane:
    """Return the image with its longer side `size` pixels.

    A larger image is pooled in blocks: by their mean, or, with `peak`, by the value of the greatest modulus,
    sign kept, so that a change a few pixels wide does not drown. A smaller one is magnified by repeating pixels.
    """
    plane = np.asarray(image, np.float32)
    longer = max(plane.shape)
    # Block edges fall where they must: whole blocks of one size would not fill the panel, and a second
    # resampling would beat against the first and show as a grid in the noise.
    targets = [max(1, round(n * size / longer)) for n in plane.shape]
    edges = [np.arange(target) * n // target for n, target in zip(plane.shape, targets, strict=True)]
    if longer <= size:
        return plane[edges[0]][:, edges[1]]
    if peak:
        high = np.maximum.reduceat(np.maximum.reduceat(plane, edges[0], axis=0), edges[1], axis=1)
        low = np.minimum.reduceat(np.minimum.reduceat(plane, edges[0], axis=0), edges[1], axis=1)
        return np.where(high >= -low, high, low)
    total = np.add.reduceat(np.add.reduceat(plane, edges[0], axis=0), edges[1], axis=1)
    counts = [np.diff(np.append(edge, n)) for edge, n in zip(edges, plane.shape, strict=True)]
    return (total / np.outer(*counts)).astype(np.float32)


def grey_share(image: Plane, zero: float, sigma: float, top: float) -> Plane:
    """Return the asinh stretch of `image`, 0 to 1: 0 at zero - 1.3 σ, linear in the noise, 1 at `top`."""
    low = np.arcsinh(-1.3 / 3)
    high = np.arcsinh(max((top - zero) / sigma, 6.0) / 3)
    value = (np.arcsinh((image - zero) / sigma / 3) - low) / (high - low)
    return np.clip(value, 0, 1).astype(np.float32, copy=False)


def grey(image: Plane, zero: float, sigma: float, top: float) -> RGB:
    """Return the asinh stretch of `image`: dark at zero - 1.3 σ, linear in the noise, white at `top`."""
    return _GREY_TABLE[(grey_share(image, zero, sigma, top) * 255).astype(np.uint8)]


def diverging_share(image: Plane, limit: float = SCORE_LIMIT) -> Plane:
    """Return `image` on a scale from -1 at -limit over 0 to 1 at +limit."""
    return np.clip(np.nan_to_num(image) / limit, -1, 1)


def diverging(image: Plane, limit: float = SCORE_LIMIT) -> RGB:
    """Return `image` on the scale from -limit (blue) over 0 (dark) to +limit (orange)."""
    return _DIVERGING_TABLE[((diverging_share(image, limit) + 1) * 127.5).astype(np.uint8)]


def colour_bar(width: int, height: int) -> RGB:
    """Return the diverging scale as a bar."""
    return np.broadcast_to(
        _DIVERGING_TABLE[np.linspace(0, 255, width).astype(np.uint8)], (height, width, 3)
    ).copy()
