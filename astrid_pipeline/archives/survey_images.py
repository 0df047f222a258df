"""Reference images from sky surveys: cut-outs of Pan-STARRS1, Legacy Surveys, HiPS and SkyView on a science grid.

They are what remains where the telescope itself has no earlier image. Another telescope sees with another filter,
resolution and photometry, so a field's reference policy has to name the survey, and every such reference is flagged.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from astrid_pipeline.archives.header_cache import cache_folder
from astrid_pipeline.archives.survey_servers import Cutout, fetch_cutout
from astrid_pipeline.archives.web import Patience
from astrid_pipeline.errors import ConfigError, NoReferenceError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.settings import get_settings

#: Share of the grid that a cut-out must cover: below it most differences would end at its edge. As for coadds.
MIN_COVERAGE = 0.85


@dataclass(frozen=True)
class SurveyChoice:
    """One survey of a reference policy: ``NAME[:BAND][@FIRST-LAST][?server=ADDRESS]``.

    Attributes
    ----------
    name:
        A key of `reference_surveys.yaml`.
    band:
        The survey's name of a band (or a HiPS id) where the policy names one; "" takes that of the filter.
    first_year, last_year:
        When its exposures were taken; None where neither the table nor the policy says.
    server:
        Address, where the policy names another than the table.
    """

    name: str
    band: str = ""
    first_year: int | None = None
    last_year: int | None = None
    server: str = ""

    @property
    def table(self) -> Mapping[str, Any]:
        """What `reference_surveys.yaml` says of it."""
        return surveys()[self.name]

    @classmethod
    def parse(cls, text: str) -> SurveyChoice:
        """Return the choice that a policy's part names.

        Raises
        ------
        ConfigError
            If the survey is not known, or when its exposures were taken is not.
        """
        text, _, options = text.strip().partition("?")
        server = options.removeprefix("server=") if options.startswith("server=") else ""
        text, _, years = text.partition("@")
        name, _, band = text.partition(":")
        if name not in surveys():
            raise ConfigError(
                f"no survey is called {name!r}",
                where="reference policy",
                remedy=f"use {', '.join(sorted(surveys()))}, or hips:ID@FIRST-LAST",
            )
        known = surveys()[name].get("epochs", (None, None))
        try:
            first, last = (int(part) for part in years.split("-")) if years else known
        except ValueError as error:
            raise ConfigError(
                f"{years!r} are no years", where="reference policy", remedy="write them as 1998-2009"
            ) from error
        if last is None:
            raise ConfigError(
                f"nobody says when the exposures of {text} were taken",
                where="reference policy",
                remedy=f"write the years, as in {text}@1998-2009: a reference must not hold the night it judges",
            )
        if name == "hips" and not band:
            raise ConfigError(
                "no HiPS is named", where="reference policy", remedy="write hips:CDS/P/DSS2/red@1986-1999"
            )
        return cls(name, band, first, last, server)

    def band_for(self, filter_name: str) -> tuple[str, bool]:
        """Return the survey's band for a filter, and whether it is that filter's own.

        Raises
        ------
        NoReferenceError
            If the survey does not have the filter and the policy names no band.
        """
        own = self.table["bands"].get(filter_name, "")
        if self.band:
            return self.band, self.band == own
        if not own:
            have = ", ".join(sorted(self.table["bands"])) or "none"
            raise NoReferenceError(
                f"{self.table['title']} has no filter {filter_name} (it has {have})",
                where=self.name,
                remedy=f"name the band to use all the same in the policy, as in {self.name}:r",
            )
        return str(own), True

    @property
    def valid_from(self) -> str:
        """First night that it may judge: after the survey's last year."""
        return f"{int(self.last_year or 0) + 1:04d}-01-01"


@cache
def surveys() -> Mapping[str, Mapping[str, Any]]:
    """Return the surveys of `reference_surveys.yaml`, with what the file that ASTRID_SURVEYS names says otherwise.

    Raises
    ------
    ConfigError
        If that file cannot be used.
    """
    own = Path(__file__).parent / "reference_surveys.yaml"
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(own.read_text(encoding="utf-8"))
    if extra := get_settings().surveys:
        try:
            more = yaml.safe_load(Path(extra).read_text(encoding="utf-8"))
            for name, entries in more.items():
                loaded[name] = {**loaded.get(name, {}), **entries}
                if missing := {"title", "kind", "server", "bands"} - set(loaded[name]):
                    raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"not a file of surveys: {error}",
                where="ASTRID_SURVEYS",
                remedy="write it as archives/reference_surveys.yaml is written",
            ) from error
    return loaded


def survey_reference(
    choice: SurveyChoice,
    filter_name: str,
    grid: tuple[WCS, tuple[int, int]],
    *,
    instrument: str = "",
    patience: Patience | None = None,
    home: Path | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> Frame:
    """Return a survey's image of the sky on a science frame's grid, with where it comes from in its meta.

    Parameters
    ----------
    choice, filter_name:
        Which survey, for which of the science frames' filters.
    grid:
        WCS and (height, width) of the science frames.
    instrument:
        The science frames' instrument, for what is said of the pair.
    patience, home:
        How long to wait for the server, and where its files are kept.
    min_coverage:
        Least share of the grid that must be covered.

    Returns
    -------
    Frame
        Linear flux on the grid, the sky as the survey left it, without variance and PSF (`quality.prepare` measures
        them where they can be measured). Pixels that the survey does not have, or calls bad, are masked. meta:
        `filter`, `survey`, `survey_band`, `source`, `mjd_min`, `mjd_max`, `zero_point` (if there is one),
        `zero_point_source`, `coverage`, `resampled`, `cross_mission` (always true) and `caveats` in words.

    Raises
    ------
    NoReferenceError
        If the survey lacks the filter, or covers too little of the grid.
    ServiceError
        If its server does not answer.
    """
    band, same = choice.band_for(filter_name)
    table = choice.table
    folder = home or cache_folder().parent / "surveys"
    wcs, shape = grid
    data = np.full(shape, np.nan)
    mask = np.zeros(shape, np.int32)
    pieces = []
    server = choice.server or str(table["server"])
    for piece in _pieces(wcs, shape, table):
        cutout = fetch_cutout(str(table["kind"]), server, band, piece, table, folder, patience or Patience())
        values, flags = onto_grid(cutout, wcs, shape)
        new = np.isnan(data) & np.isfinite(values)
        data = np.where(new, values, data)
        mask = np.where(new, flags, mask)
        pieces.append(cutout)
    covered = float((np.isfinite(data) & (mask & int(Mask.NO_DATA) == 0)).mean())
    if covered < min_coverage:
        raise NoReferenceError(
            f"{table['title']} ({band}) covers {covered:.0%} of the field",
            where=choice.name,
            remedy="name another survey in the field's reference policy, or take a smaller field",
        )
    first = min((c.mjd_min for c in pieces if c.mjd_min is not None), default=_mjd_of_year(choice.first_year))
    last = max(
        (c.mjd_max for c in pieces if c.mjd_max is not None),
        default=_mjd_of_year((choice.last_year or 0) + 1),
    )
    zero_point = next((c.zero_point for c in pieces if c.zero_point is not None), table.get("zero_point"))
    caveats = [f"taken by {table['title']}, not by {instrument or 'the science instrument'}"]
    if not same:
        caveats.append(f"in its band {band}, which is not {filter_name}")
    if zero_point is None:
        caveats.append("without a photometric zero point")
    meta: dict[str, Any] = {
        "filter": filter_name,
        "instrument": str(table["title"]),
        "survey": choice.name,
        "survey_band": band,
        "source": pieces[0].source,
        "mjd_min": first,
        "mjd_max": last,
        "mjd": (first + last) / 2,
        "unit": "adu",
        "coverage": covered,
        "resampled": True,
        "cross_mission": True,
        "caveats": "; ".join(caveats),
        "n_frames": 1,
    }
    if zero_point is not None:
        meta |= {"zero_point": float(zero_point), "zero_point_source": f"{table['title']}"}
    return Frame(data.astype(np.float32), mask=mask, wcs=wcs, meta=meta)


@dataclass(frozen=True)
class Piece:
    """What to ask a server for: a centre and side in degrees, or a grid for servers that take one."""

    ra: float
    dec: float
    side: float
    grid: tuple[WCS, tuple[int, int]]


def _pieces(wcs: WCS, shape: tuple[int, int], table: Mapping[str, Any]) -> list[Piece]:
    """Cut the grid into pieces that the server gives in one, each with a margin over its neighbours."""
    height, width = shape
    scale = _scale(wcs)
    limit = table.get("tile")
    n = 1 if limit is None else max(1, math.ceil(max(shape) * scale * 1.1 / float(limit)))
    out = []
    for j in range(n):
        for i in range(n):
            x, y = (i + 0.5) * width / n - 0.5, (j + 0.5) * height / n - 0.5
            ra, dec = wcs.all_pix2world([[x, y]], 0)[0]
            # The diagonal, for the grid may be rotated on the sky, and a tenth more.
            side = 1.1 * math.hypot(width / n, height / n) * scale
            out.append(Piece(float(ra) % 360, float(dec), side, (wcs, shape)))
    return out


def onto_grid(cutout: Cutout, wcs: WCS, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a cut-out's pixels and mask on a grid, flux kept; NaN where it has none.

    Resampling averages over the target pixel's footprint (DeForest 2004), so that fine pixels on a coarse grid keep
    their flux and alias nothing.
    """
    if cutout.wcs is wcs:
        return cutout.data, cutout.mask
    from reproject import reproject_adaptive, reproject_interp

    cutout = _binned(cutout, int(_scale(wcs) / _scale(cutout.wcs) / 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        values, _ = reproject_adaptive(
            (np.asarray(cutout.data, float), cutout.wcs),
            wcs,
            shape_out=shape,
            conserve_flux=True,
            kernel="gaussian",
            bad_value_mode="ignore",
            boundary_mode="ignore_threshold",
        )
        bad = np.isnan(cutout.data) | (cutout.mask != 0)
        flagged, _ = reproject_interp((bad.astype(float), cutout.wcs), wcs, shape_out=shape, order="bilinear")
    values = np.where(np.isfinite(flagged), values, np.nan)
    mask = np.where(np.nan_to_num(flagged, nan=0.0) > 0.01, np.int32(Mask.BAD_PIXEL), np.int32(0))
    return values, np.where(np.isfinite(values), mask, np.int32(Mask.NO_DATA))


def _binned(cutout: Cutout, factor: int) -> Cutout:
    """Sum blocks of pixels: a grid much coarser than the survey's is resampled as well from half its own scale."""
    if factor < 2:
        return cutout
    height, width = (n - n % factor for n in cutout.data.shape)
    blocks = (height // factor, factor, width // factor, factor)
    data = cutout.data[:height, :width].reshape(blocks).sum(axis=(1, 3))
    mask = np.bitwise_or.reduce(
        np.bitwise_or.reduce(cutout.mask[:height, :width].reshape(blocks), axis=3), axis=1
    )
    return replace(cutout, data=data, mask=mask, wcs=cutout.wcs[:height:factor, :width:factor])


def _scale(wcs: WCS) -> float:
    """Return degrees per pixel."""
    return float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))


def _mjd_of_year(year: int | None) -> float:
    from astropy.time import Time

    return float(Time(f"{int(year or 1900):04d}-01-01").mjd)


def parse_policy(text: str) -> list[str | SurveyChoice]:
    """Return the parts of a reference policy in their order: ``auto``, ``exposures:…``, and surveys.

    ``auto+ps1+legacy`` takes the field's own earlier frames, else Pan-STARRS1, else the Legacy Surveys.

    Raises
    ------
    ConfigError
        If a part is not known.
    """
    parts: list[str | SurveyChoice] = []
    for part in text.split("+"):
        part = part.strip()
        if part == "auto" or (part.startswith("exposures:") and part.removeprefix("exposures:").strip(", ")):
            parts.append(part)
        else:
            parts.append(SurveyChoice.parse(part))
    return parts
