"""Pictures of a difference and of a frame, as PNG bytes: for the Dagster page, the report and the README.

North is where the WCS says; y grows upwards, as in DS9. Only numpy and Pillow: a picture of a 2048² difference
takes a fraction of a second, since every night makes many.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image as Pillow
from PIL import ImageDraw

from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.mask import is_set
from astrid_pipeline.report import stretch
from astrid_pipeline.report.drawing import (
    BACKGROUND,
    FLAT_COLOURS,
    MUTED,
    TEXT,
    draw_bar,
    draw_compass,
    draw_marks,
    fit_text,
    font,
)

#: More circles than this hide the picture; the title then says how many of how many are drawn.
_MOST_MARKS = 150
#: A page with several of them still opens at once.
_THUMB_BYTES = 150_000
#: What the Dagster page shows beside its lists of partitions, on a screen of 1600 px.
_THUMB_WIDTH = 640

#: name, remark, pixels, and the ends of the colour scale where it has one
_Panel = tuple[str, str, stretch.RGB, float | None]


def quad_png(
    difference: Difference,
    candidates: pd.DataFrame | None = None,
    title: str = "",
    *,
    max_px: int = 1200,
    numbered: int = 0,
    colours: int | None = None,
) -> bytes:
    """Return science | reference | difference | score side by side, candidates marked, as PNG.

    Parameters
    ----------
    candidates:
        A table with `x`, `y` (zero-based pixels) and, where known, `score` (green from 0.5 on, grey below),
        `sign` (a square marks a fading source) and `snr`. The strongest 150 are drawn.
    title:
        Default: exposure, filter and field, from `difference.meta`.
    max_px:
        Width of the whole picture.
    numbered:
        Number the first so many rows, as a table beside the picture does.
    colours:
        Steps of each colour scale, for a smaller file; default: all colours.
    """
    return _png(_quad(difference, candidates, title, max_px, numbered), colours)


def thumb_png(
    difference: Difference,
    candidates: pd.DataFrame | None = None,
    title: str = "",
    *,
    max_px: int = _THUMB_WIDTH,
    max_bytes: int = _THUMB_BYTES,
) -> bytes:
    """Return `quad_png` two by two, in at most `max_bytes`: fewer colours first, then fewer pixels."""
    return _small(lambda width: _quad(difference, candidates, title, width, 0, columns=2), max_px, max_bytes)


def frame_png(
    frame: Frame,
    sources: pd.DataFrame | None = None,
    title: str = "",
    *,
    max_px: int = 700,
    max_bytes: int | None = None,
) -> bytes:
    """Return one frame, robustly stretched, `sources` (x, y) marked; unusable pixels are violet.

    With `max_bytes`, colours and then pixels are given up until the PNG fits, as in `thumb_png`.
    """
    zero, sigma = _sky(frame.data, frame.mask)
    top = _top(frame.data, frame.mask)
    caption = _join(_conditions(frame.meta))

    def draw(width: int) -> Pillow.Image:
        panel = pool_grey(frame.data, frame.mask, width, zero, sigma, top)
        return _compose([(title or "frame", caption, panel, None)], "", sources, frame.shape, frame.wcs, 0)

    return _png(draw(max_px)) if max_bytes is None else _small(draw, max_px, max_bytes)


def stamps_png(difference: Difference, x: float, y: float, *, radius: int = 16, size: int = 96) -> bytes:
    """Return cut-outs of (2 radius + 1)² pixels around (x, y): science, reference, difference, score, in a row.

    Every cut-out has the stretch of the noise there, so that two stamps compare; outside the frame is violet.
    """
    cx, cy = round(float(x)), round(float(y))
    science, reference = (_cut(plane, cx, cy, radius) for plane in (difference.science, difference.reference))
    noise = _cut(np.sqrt(difference.variance), cx, cy, radius)
    change, score = _cut(difference.data, cx, cy, radius) / noise, _cut(difference.score, cx, cy, radius)
    planes = []
    both = np.concatenate([science[np.isfinite(science)], reference[np.isfinite(reference)]])
    top = float(both.max()) if both.size else 1.0
    for plane, key in ((science, "science_sky_sigma"), (reference, "reference_sky_sigma")):
        sigma = _number(difference.meta, key) or stretch.robust(difference.science)[1]
        planes.append(stretch.grey(np.nan_to_num(plane), 0.0, sigma, top))
    _, spread = stretch.robust(difference.data / np.sqrt(difference.variance))
    planes.append(stretch.diverging(change / max(spread, 1e-6)))
    planes.append(stretch.diverging(score))
    outside = ~np.isfinite(science)
    gap = max(2, size // 48)
    picture = Pillow.new("RGB", (4 * size + 3 * gap, size), BACKGROUND)
    for k, tinted in enumerate(planes):
        tinted[outside] = stretch.MASKED
        tile = Pillow.fromarray(tinted[::-1]).resize((size, size), Pillow.Resampling.NEAREST)
        picture.paste(tile, (k * (size + gap), 0))
    return _png(picture, 64)


def pool_grey(
    image: npt.NDArray[np.float32],
    mask: npt.NDArray[np.int32],
    size: int,
    zero: float,
    sigma: float,
    top: float,
) -> stretch.RGB:
    """Return a sky image as colours, its longer side `size` pixels, unusable pixels violet."""
    panel = stretch.grey(stretch.pool(image, size), zero, sigma, top)
    return _tint(panel, is_set(mask), size)


def _quad(
    difference: Difference,
    candidates: pd.DataFrame | None,
    title: str,
    max_px: int,
    numbered: int,
    columns: int = 4,
) -> Pillow.Image:
    gap = max(4, max_px // 200)
    size = max(32, (max_px - (columns + 1) * gap) // columns)
    meta = difference.meta
    mask = difference.mask
    # One stretch for both images: their flux scale is the same, and the eye compares them.
    top = max(_top(difference.science, mask), _top(difference.reference, mask))
    panels: list[_Panel] = []
    science_zero, science_sigma = _sky(difference.science, mask)
    reference_zero, reference_sigma = _sky(difference.reference, mask)
    sigma = max(science_sigma, reference_sigma)
    panels.append(
        (
            "science",
            _join(_conditions(meta)),
            pool_grey(difference.science, mask, size, science_zero, sigma, top),
            None,
        )
    )
    panels.append(
        (
            "reference",
            _join(_reference_note(meta)),
            pool_grey(difference.reference, mask, size, reference_zero, sigma, top),
            None,
        )
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        change = difference.data / np.sqrt(difference.variance)
    unusable = is_set(mask, reference=True)
    change = np.where(unusable, 0, np.nan_to_num(change))
    pooled = stretch.pool(change, size)
    pooled = pooled / stretch.robust(pooled)[1]
    panels.append(
        (
            "difference",
            str(meta.get("method", "")),
            _tint(stretch.diverging(pooled), unusable, size),
            stretch.SCORE_LIMIT,
        )
    )
    score = stretch.pool(np.where(unusable, 0, difference.score), size, peak=True)
    noise = _number(meta, "score_sigma")
    panels.append(
        (
            "score",
            "" if noise is None else f"noise {noise:.3f}",
            _tint(stretch.diverging(score), unusable, size),
            stretch.SCORE_LIMIT,
        )
    )
    name = title or _title(meta)
    return _compose(panels, name, candidates, difference.shape, difference.wcs, numbered, columns)


def _compose(
    panels: list[_Panel],
    title: str,
    marks: pd.DataFrame | None,
    shape: tuple[int, int],
    wcs: Any,
    numbered: int,
    columns: int = 4,
) -> Pillow.Image:
    """Lay panels in rows of `columns` under their captions; mark, and draw compass and colour bars."""
    height, width = panels[0][2].shape[:2]
    longer = max(width, height)
    letter = int(np.clip(longer / 24, 9, 20))
    gap = max(4, longer // 50)
    caption = round(letter * 2.75)
    head = round(letter * 2.1) if title else gap
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    total = (columns * (width + gap) + gap, head + rows * (caption + height + gap))
    picture = Pillow.new("RGB", total, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    scale = width / shape[1]

    note = ""
    if marks is not None and len(marks):
        shown = _strongest(marks)
        note = (
            f"{len(marks):,} marked" if len(shown) == len(marks) else f"{len(shown)} of {len(marks):,} marked"
        )
    if title:
        right = draw.textlength(note, font(letter)) if note else 0
        room = total[0] - 2 * gap - right - letter
        draw.text(
            (gap, letter * 0.5), fit_text(draw, title, font(letter, True), room), TEXT, font(letter, True)
        )
        draw.text((total[0] - gap - right, letter * 0.5), note, MUTED, font(letter))
    for k, (name, remark, pixels, limit) in enumerate(panels):
        x, y = gap + k % columns * (width + gap), head + k // columns * (caption + height + gap)
        bold, small = font(letter, True), font(max(8, round(letter * 0.85)))
        draw.text((x, y), name, TEXT, bold)
        if limit is not None:
            draw_bar(draw, picture, x + width, y, letter, limit)
        draw.text((x, y + letter * 1.35), fit_text(draw, remark, small, width), MUTED, small)
        picture.paste(Pillow.fromarray(np.ascontiguousarray(pixels[::-1])), (x, y + caption))
        if marks is not None and len(marks):
            # Numbers only where there is room to read them: on the first panel and on the score.
            digits = numbered if k in (0, len(panels) - 1) else 0
            draw_marks(picture, (x, y + caption), (width, height), shown, scale, digits, strong=k != 1)
        if k == 0 and wcs is not None:
            draw_compass(picture, (x, y + caption), (width, height), wcs, shape, scale)
    return picture


def _strongest(marks: pd.DataFrame) -> pd.DataFrame:
    """Return the marks worth drawing: all, or the highest scores and then the greatest |snr|."""
    if len(marks) <= _MOST_MARKS:
        return marks
    keys = pd.DataFrame(
        {
            "score": marks["score"].fillna(-1) if "score" in marks else 0.0,
            "snr": marks["snr"].abs() if "snr" in marks else 0.0,
        },
        index=marks.index,
    )
    return marks.loc[keys.sort_values(["score", "snr"], ascending=False).index[:_MOST_MARKS]]


def _tint(panel: stretch.RGB, unusable: npt.NDArray[np.bool_], size: int) -> stretch.RGB:
    if unusable.any():
        share = stretch.pool(unusable.astype(np.float32), size)
        panel[share > 0.5] = stretch.MASKED
    return panel


def _sky(image: npt.NDArray[np.float32], mask: npt.NDArray[np.int32]) -> tuple[float, float]:
    good = ~is_set(mask)
    step = max(1, good.size // 200_000)
    chosen = image.ravel()[::step][good.ravel()[::step]]
    return stretch.robust(chosen if chosen.size else image)


def _top(image: npt.NDArray[np.float32], mask: npt.NDArray[np.int32]) -> float:
    """Return what should be white: 0.2 % of the good pixels are brighter."""
    good = ~is_set(mask)
    step = max(1, good.size // 200_000)
    chosen = image.ravel()[::step][good.ravel()[::step]]
    return float(np.percentile(chosen if chosen.size else image, 99.8))


def _cut(plane: npt.NDArray[Any], cx: int, cy: int, radius: int) -> npt.NDArray[np.float32]:
    """Return the (2 radius + 1)² cut-out, NaN outside the plane."""
    side = 2 * radius + 1
    out = np.full((side, side), np.nan, np.float32)
    height, width = plane.shape
    y0, y1, x0, x1 = (
        max(cy - radius, 0),
        min(cy + radius + 1, height),
        max(cx - radius, 0),
        min(cx + radius + 1, width),
    )
    if y1 > y0 and x1 > x0:
        out[y0 - cy + radius : y1 - cy + radius, x0 - cx + radius : x1 - cx + radius] = plane[y0:y1, x0:x1]
    return out


def _number(meta: Any, key: str) -> float | None:
    value = meta.get(key)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _join(parts: list[str]) -> str:
    return "  ·  ".join(part for part in parts if part)


def _title(meta: Any) -> str:
    names = [meta.get("field"), meta.get("night"), meta.get("exposure_id")]
    return _join([str(name) for name in names if name]) or "difference"


def _conditions(meta: Any) -> list[str]:
    parts = [str(meta.get("filter") or "")]
    if (seconds := _number(meta, "exposure")) is not None:
        parts.append(f"{seconds:g} s")
    if (seeing := _number(meta, "seeing_arcsec")) is not None:
        parts.append(f"seeing {seeing:.2f}″")
    elif (seeing := _number(meta, "seeing")) is not None:
        parts.append(f"seeing {seeing:.2f} px")
    return parts


def _reference_note(meta: Any) -> list[str]:
    shift = [_number(meta, key) for key in ("dx_rms", "dy_rms")]
    parts = [str(meta.get("reference_id") or "")]
    if shift[0] is not None and shift[1] is not None:
        parts.append(f"registered to {max(shift[0], shift[1]):.2f} px")
    return parts


def _png(picture: Pillow.Image, levels: int | None = None) -> bytes:
    """Return the picture as PNG; with `levels`, in a palette of so many steps of each colour scale."""
    if levels is not None:
        picture = picture.quantize(palette=_palette(levels), dither=Pillow.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=6)
    return out.getvalue()


def _small(draw: Callable[[int], Pillow.Image], width: int, max_bytes: int) -> bytes:
    """Return what `draw(width)` gives as a PNG of at most `max_bytes`: fewer colours first, then fewer pixels."""
    while True:
        picture = draw(width)
        for levels in (40, 24, 14):
            data = _png(picture, levels)
            if len(data) <= max_bytes or (width <= 200 and levels == 14):
                return data
        # Bytes grow with the area; the little more that is taken off makes one more round enough.
        width = max(200, int(width * min(0.92, 0.97 * (max_bytes / len(data)) ** 0.5)))


@functools.lru_cache(maxsize=8)
def _palette(levels: int) -> Pillow.Image:
    """Return the colours a picture is made of: both scales, and those of text and marks.

    A palette fitted to the pixels would spend its colours on the noise and lose the few green circles.
    """
    steps = np.linspace(0, 255, levels).astype(np.uint8)
    colours = np.concatenate([*(table[steps] for table in stretch.TABLES), np.array(FLAT_COLOURS, np.uint8)])
    holder = Pillow.new("P", (1, 1))
    holder.putpalette(colours.ravel().tolist())
    return holder
