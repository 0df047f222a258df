"""Whether a footprint on the sky, in the archive's text form, holds a position."""

from __future__ import annotations

import math
import re

from astrid_pipeline.archives.grouping import separation

#: A shape, perhaps the name of its frame (all of them are ICRS to far better than a pixel), and numbers.
_SHAPE = re.compile(r"(CIRCLE|POLYGON)\s+(?:[A-Z][A-Z0-9]*\s+)*([-+.\dE\s]*)")


def contains(region: str | None, ra: float, dec: float) -> bool:
    """Return whether a footprint (``CIRCLE …`` or ``POLYGON …``, STC-S) holds a position in ICRS degrees.

    Several shapes in one text are a union. A polygon is looked at in the gnomonic projection around the position,
    in which great circles are straight; one that reaches beyond 90° from it, or text of another form, holds nothing.
    """
    for kind, body in _SHAPE.findall(str(region or "").upper()):
        numbers = [float(text) for text in re.findall(r"[-+]?\d+\.?\d*(?:E[-+]?\d+)?", body)]
        if kind == "CIRCLE" and len(numbers) >= 3:
            if separation(numbers[0], numbers[1], ra, dec) <= numbers[2]:
                return True
        elif kind == "POLYGON" and len(numbers) >= 6:
            corners = [_gnomonic(numbers[i], numbers[i + 1], ra, dec) for i in range(0, len(numbers) - 1, 2)]
            if None not in corners and _inside([c for c in corners if c is not None]):
                return True
    return False


def _gnomonic(ra: float, dec: float, ra0: float, dec0: float) -> tuple[float, float] | None:
    a, d, d0 = math.radians(ra - ra0), math.radians(dec), math.radians(dec0)
    cosine = math.sin(d0) * math.sin(d) + math.cos(d0) * math.cos(d) * math.cos(a)
    if cosine <= 0:
        return None
    x = math.cos(d) * math.sin(a) / cosine
    y = (math.cos(d0) * math.sin(d) - math.sin(d0) * math.cos(d) * math.cos(a)) / cosine
    return x, y


def _inside(corners: list[tuple[float, float]]) -> bool:
    """Tell whether the origin is inside: a ray along +x crosses the border an odd number of times."""
    odd = False
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y1 > 0) != (y2 > 0) and x1 + (x2 - x1) * y1 / (y1 - y2) > 0:
            odd = not odd
    return odd
