"""The parts drawn over a picture: text, circles around candidates, the compass, the colour bar."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from astrid_pipeline.report.stretch import MASKED, colour_bar

BACKGROUND = (13, 16, 23)
TEXT = (233, 237, 243)
MUTED = (148, 158, 172)
#: Marks are drawn this many times larger and then shrunk, which makes their edges smooth.
_SMOOTH = 3

_DETECTED = (82, 222, 128, 255)
_REJECTED = (150, 160, 175, 190)
_CANDIDATE = (250, 204, 60, 235)


def _blend(colour: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(share * c + (1 - share) * b) for c, b in zip(colour[:3], BACKGROUND, strict=True))


#: Everything that is drawn in a flat colour, full and as its smoothed edges show it.
FLAT_COLOURS = (
    BACKGROUND,
    MASKED,
    *(_blend(c, share) for c in (TEXT, MUTED, _DETECTED, _REJECTED, _CANDIDATE) for share in (1, 0.7, 0.4)),
)


@functools.lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib carries along: it has every sign that the captions use."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def fit_text(draw: ImageDraw.ImageDraw, text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """Return `text`, shortened with an ellipsis to at most `width` pixels."""
    if draw.textlength(text, face) <= width:
        return text
    while text and draw.textlength(text + "…", face) > width:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def draw_bar(
    draw: ImageDraw.ImageDraw, picture: Pillow.Image, right: float, top: float, letter: int, limit: float
) -> None:
    """Draw the diverging colour scale with its ends, right-aligned, one line high."""
    face = font(max(8, round(letter * 0.8)))
    low, high = f"−{limit:g}σ ", f" +{limit:g}σ"
    width, height = letter * 4, max(5, letter // 2)
    x = right - draw.textlength(high, face) - width
    draw.text((x + width, top + letter * 0.12), high, MUTED, face)
    draw.text((x - draw.textlength(low, face), top + letter * 0.12), low, MUTED, face)
    picture.paste(Pillow.fromarray(colour_bar(width, height)), (round(x), round(top + letter * 0.38)))


def draw_marks(
    picture: Pillow.Image,
    origin: tuple[int, int],
    size: tuple[int, int],
    marks: pd.DataFrame,
    scale: float,
    numbered: int,
    *,
    strong: bool = True,
) -> None:
    """Draw a circle (a square where a source faded) around each row's x, y; number the first `numbered` rows."""
    width, height = size
    layer = Pillow.new("RGBA", (width * _SMOOTH, height * _SMOOTH), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    radius = max(5.0, max(width, height) / 55) * _SMOOTH
    line = max(1, round(max(width, height) / 260)) * _SMOOTH
    scores = marks["score"].to_numpy(float) if "score" in marks else np.full(len(marks), np.nan)
    signs = marks["sign"].to_numpy(float) if "sign" in marks else np.ones(len(marks))
    for k, (x, y) in enumerate(marks[["x", "y"]].to_numpy(float)):
        if not (np.isfinite(x) and np.isfinite(y)):
            continue
        cx, cy = (x + 0.5) * scale * _SMOOTH, (height - (y + 0.5) * scale) * _SMOOTH
        score = scores[k]
        colour = _CANDIDATE if np.isnan(score) else _DETECTED if score >= 0.5 else _REJECTED
        if not strong:
            colour = (*colour[:3], 110)
        box = (cx - radius, cy - radius, cx + radius, cy + radius)
        if signs[k] < 0:
            draw.rectangle(box, outline=colour, width=line)
        else:
            draw.ellipse(box, outline=colour, width=line)
        if k < numbered:
            face = font(round(max(9.0, max(width, height) / 32)) * _SMOOTH, True)
            at = (cx + radius * 0.85, cy - radius * 0.75)
            draw.text(
                at,
                str(k + 1),
                (*TEXT, 255),
                face,
                anchor="lb",
                stroke_width=2 * _SMOOTH,
                stroke_fill=BACKGROUND,
            )
    layer = layer.resize((width, height), Pillow.Resampling.BOX)
    picture.paste(layer, origin, layer)


def draw_compass(
    picture: Pillow.Image,
    origin: tuple[int, int],
    size: tuple[int, int],
    wcs: Any,
    shape: tuple[int, int],
    scale: float,
) -> None:
    """Draw arrows to north and east and a bar of a round angular length in the lower corners."""
    cx, cy = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    step = min(shape) / 10
    ra, dec = (np.asarray(v, float) for v in wcs.pixel_to_world_values([cx, cx + 1, cx], [cy, cy, cy + 1]))
    cos = np.cos(np.radians(dec[0]))
    # d(east, north)/d(x, y) in degrees per pixel; its inverse turns sky directions into pixel ones.
    jacobian = np.array([((ra[1:] - ra[0] + 180) % 360 - 180) * cos, dec[1:] - dec[0]])
    if not np.isfinite(jacobian).all() or abs(np.linalg.det(jacobian)) == 0:
        return
    directions = np.linalg.inv(jacobian)
    draw = ImageDraw.Draw(picture)
    width, height = size
    length = max(14, min(width, height) // 12)
    face = font(max(9, length // 2), True)
    corner = np.array([origin[0] + width - length * 1.9, origin[1] + height - length * 1.9])
    for name, direction in (("E", directions[:, 0]), ("N", directions[:, 1])):
        arrow = direction / np.hypot(*direction) * length * np.array([1, -1])
        tip = corner + arrow
        for colour, line in ((BACKGROUND, 4), (TEXT, 2)):
            draw.line([tuple(corner), tuple(tip)], fill=colour, width=line)
        at = corner + arrow * 1.4
        draw.text(tuple(at), name, TEXT, face, anchor="mm", stroke_width=2, stroke_fill=BACKGROUND)
    pixel = np.sqrt(abs(np.linalg.det(jacobian))) * 3600
    most = step * 2.5 * pixel
    bar = _round_angle(most)
    span = bar / pixel * scale
    x, y = origin[0] + length * 0.7, origin[1] + height - length * 0.8
    for colour, line in ((BACKGROUND, 5), (TEXT, 2)):
        draw.line([(x, y), (x + span, y)], fill=colour, width=line)
    text = f"{bar / 3600:g}°" if bar >= 3600 else f"{bar / 60:g}′" if bar >= 60 else f"{bar:g}″"
    draw.text((x + span / 2, y - 5), text, TEXT, face, anchor="mb", stroke_width=2, stroke_fill=BACKGROUND)


def _round_angle(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 30 × 1″, 1′, 1° that is at most `most` arcsec."""
    choices = [unit * n for unit in (0.01, 1, 60, 3600) for n in (1, 2, 5, 10, 20, 30)]
    return max([c for c in choices if c <= most], default=choices[0])
