"""A simulated survey: fields full of stars, galaxies and things that change, exposed night after night."""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline.errors import InputError
from astrid_pipeline.simulation import detector
from astrid_pipeline.simulation.camera import Camera
from astrid_pipeline.simulation.psf import SkyPSF, varying_psf
from astrid_pipeline.simulation.schedule import (
    SITE_LONGITUDE,
    ZERO_POINTS,
    Plan,
    SurveyOptions,
    field_centre,
    field_name,
    make_schedule,
)
from astrid_pipeline.simulation.sky import render
from astrid_pipeline.simulation.skyfield import SkyField
from astrid_pipeline.simulation.survey_truth import SURVEY_TRUTH, exposure_truth

Image = npt.NDArray[np.float32]

#: Optical distortion: px by which a star in the corner of the frame stands further out than a tangent plane says.
DISTORTION = 0.25

#: Counts that a flat field reaches.
FLAT_LEVEL = 22_000.0

#: Cosmic rays a megapixel and 90 s, on a mountain.
COSMIC_RAYS = 18.0


class SimulatedSurvey:
    """All that a survey is: `plans` says what was exposed, `expose` gives its counts, `truth` what had changed.

    The same options give the same bytes, in any order of asking.
    """

    def __init__(self, options: SurveyOptions | None = None) -> None:
        self.options = options or SurveyOptions()
        self.camera = Camera(self.options.seed, (self.options.size, self.options.size))
        self._skies = lru_cache(maxsize=None)(self._sky)

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """Every exposure by its id, in order of time."""
        return {plan.exposure_id: plan for plan in make_schedule(self.options)}

    def plan(self, exposure_id: str) -> Plan:
        """Return the plan of an exposure.

        Raises
        ------
        InputError
            If the survey has no such exposure.
        """
        try:
            return self.plans[exposure_id]
        except KeyError:
            raise InputError(
                "the simulated survey has no such exposure",
                where=exposure_id,
                remedy="open the archive with the seed and the options that listed it",
            ) from None

    @property
    def field_names(self) -> list[str]:
        """The fields' names."""
        return [field_name(i) for i in range(self.options.fields)]

    def sky(self, field: str) -> SkyField:
        """Return what is in a field.

        Raises
        ------
        InputError
            If the survey has no such field.
        """
        if field not in self.field_names:
            raise InputError(
                "the simulated survey has no such field",
                where=field,
                remedy=f"use {', '.join(self.field_names)}",
            )
        return self._skies(self.field_names.index(field))

    def _sky(self, index: int) -> SkyField:
        return SkyField(self.options, index, [p for p in self.plans.values() if p.field == field_name(index)])

    # Where the detector looks --------------------------------------------------------------------------------------

    def plane_wcs(self, field: str) -> WCS:
        """Return the WCS of the field's plane: the detector's grid if nothing were dithered, turned or distorted."""
        o = self.options
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = list(field_centre(self.field_names.index(field)))
        wcs.wcs.crpix = [(o.size + 1) / 2, (o.size + 1) / 2]
        wcs.wcs.cdelt = [-o.pixel_scale / 3600, o.pixel_scale / 3600]
        wcs.wcs.set()
        return wcs

    def to_detector(self, plan: Plan, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[npt.NDArray, npt.NDArray]:
        """Return the detector pixels (zero-based, in the imaging area) of points of the field's plane."""
        middle = (self.options.size - 1) / 2
        u = np.asarray(x, float) - middle - plan.dither[0]
        v = np.asarray(y, float) - middle - plan.dither[1]
        cos, sin = math.cos(plan.rotation), math.sin(plan.rotation)
        u, v = cos * u - sin * v, sin * u + cos * v
        corner2 = 2 * middle**2
        # Third order: the displacement grows with the cube of the distance from the axis.
        grow = 1 + DISTORTION / math.sqrt(corner2) * (u * u + v * v) / corner2
        return middle + u * grow, middle + v * grow

    def header_wcs(self, plan: Plan) -> WCS:
        """Return the WCS that the telescope writes: a tangent plane, off by the pointing error."""
        o = self.options
        ex, ey, turn = plan.pointing_error
        middle = (o.size - 1) / 2
        angle = plan.rotation + turn
        ra, dec = self.plane_wcs(plan.field).all_pix2world(
            middle + plan.dither[0] + ex, middle + plan.dither[1] + ey, 0
        )
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [float(ra), float(dec)]
        wcs.wcs.crpix = [(o.size + 1) / 2, (o.size + 1) / 2]
        s, cos, sin = o.pixel_scale / 3600, math.cos(angle), math.sin(angle)
        wcs.wcs.cd = [[-s * cos, -s * sin], [-s * sin, s * cos]]
        wcs.wcs.set()
        return wcs

    # Light ---------------------------------------------------------------------------------------------------------

    def psf(self, plan: Plan) -> SkyPSF:
        """Return the exposure's PSF, before the pixel's box."""
        rng = self.options.rng("psf", plan.exposure_id)
        variation, ellipticity = rng.uniform(0.02, 0.05), rng.uniform(0.03, 0.08)
        shape = self.camera.shape
        return varying_psf(rng, shape, plan.seeing, variation=variation, ellipticity=ellipticity, beta=3.3)

    def zero_point(self, plan: Plan) -> float:
        """Return the magnitude of a source of one electron in the exposure, after flat-fielding."""
        return ZERO_POINTS[plan.filter] + 2.5 * math.log10(plan.exposure * plan.transparency)

    def sources(self, plan: Plan) -> pd.DataFrame:
        """Return everything in the frame, as `sky.render` takes it: detector pixels and electrons."""
        table = self.sky(plan.field).at(plan.mjd, plan.filter)
        x, y = self.to_detector(plan, table["x"], table["y"])
        # Proper motion during the exposure, in the plane; the detector's turn matters too little to be seen.
        hours = plan.exposure / 3600
        flux = 10 ** (0.4 * (self.zero_point(plan) - table["mag"]))
        return table.assign(x=x, y=y, flux=flux, dx=table["rate_x"] * hours, dy=table["rate_y"] * hours)

    def expected(self, plan: Plan, *, near: pd.DataFrame | None = None) -> Image:
        """Return the electrons expected from light, flat field not applied.

        With `near` (columns x, y) only what can be seen at those places is drawn, which is quicker.
        """
        image = np.full(self.camera.shape, plan.sky, np.float32)
        sources = self.sources(plan)
        x, y, flux = (sources[c].to_numpy(float) for c in ("x", "y", "flux"))
        size = self.options.size
        inside = (
            (np.abs(x - size / 2) < size / 2 + 130) & (np.abs(y - size / 2) < size / 2 + 130) & (flux > 0.5)
        )
        if near is not None:
            # Bright stars reach further than the faint.
            reach = np.where(flux > 2e4, 130.0, 30.0) + 3 * sources["re"].fillna(0.0).to_numpy()
            close = np.zeros(len(sources), bool)
            for a, b in near[["x", "y"]].to_numpy():
                close |= (np.abs(x - a) < reach) & (np.abs(y - b) < reach)
            inside &= close
        render(image, sources[inside], self.psf(plan))
        if plan.satellite:
            image += self.satellite(plan)[0]
        return image

    def satellite(self, plan: Plan) -> tuple[Image, dict[str, float]]:
        """Return the light of the exposure's satellite, electrons, and where it passed."""
        rng = self.options.rng("satellite", plan.exposure_id)
        size = self.options.size
        x, y, angle = rng.uniform(0.3, 0.7) * size, rng.uniform(0.3, 0.7) * size, rng.uniform(0.2, 1.2)
        light, _ = detector.line_profile(self.camera.shape, x, y, angle, 1.2 * plan.seeing)
        ridge = 25 * math.sqrt(plan.sky + self.camera.read_noise**2)
        return np.float32(ridge) * light, {"x": x, "y": y, "angle": angle, "flux": ridge * float(light.sum())}

    def expose(self, exposure_id: str) -> tuple[npt.NDArray[np.uint16], fits.Header]:
        """Return the raw counts (overscan at the right) and the header of an exposure."""
        plan = self.plan(exposure_id)
        camera = self.camera
        if plan.kind == "light":
            light = self.expected(plan) * camera.flat(plan.filter)
        elif plan.kind == "flat":
            level = FLAT_LEVEL * camera.gain * self.options.rng("lamp", exposure_id).uniform(0.8, 1.2)
            light = camera.flat(plan.filter) * np.float32(level)
        else:
            light = np.zeros(camera.shape, np.float32)
        rng = self.options.rng("noise", exposure_id)
        return camera.read(rng, light, plan.exposure, self.cosmic_rays(plan)), self.header(plan)

    def cosmic_rays(self, plan: Plan) -> list[detector.Hit]:
        """Return the exposure's cosmic rays."""
        rng = self.options.rng("cosmic rays", plan.exposure_id)
        # The detector collects them while it is read, too: some 10 s.
        hits = int(rng.poisson(COSMIC_RAYS * self.options.area * (plan.exposure + 10) / 90))
        return detector.cosmic_rays(rng, self.camera.shape, hits)

    def header(self, plan: Plan) -> fits.Header:
        """Return the FITS header of an exposure."""
        from astropy.time import Time

        camera, o = self.camera, self.options
        start = plan.mjd - plan.exposure / 2 / 86400
        cards: list[tuple[str, Any, str]] = [
            ("OBSERVAT", "AstrID simulated survey", "not a real sky"),
            ("TELESCOP", "SIM-0.5m", "telescope"),
            ("INSTRUME", camera.name, "instrument"),
            ("EXPID", plan.exposure_id, "name of the exposure"),
            ("IMAGETYP", {"light": "object"}.get(plan.kind, plan.kind), "kind of exposure"),
            ("OBJECT", plan.field or plan.kind, "what it is of"),
            ("DATE-OBS", Time(start, format="mjd", scale="utc").isot, "start of the exposure, UTC"),
            ("MJD-OBS", round(start, 8), "start of the exposure, UTC"),
            ("EXPTIME", plan.exposure, "[s] exposure time"),
            ("LONGITUD", SITE_LONGITUDE, "[deg] east longitude of the site"),
            ("CCD-TEMP", camera.temperature, "[C] detector"),
            ("XBINNING", 1, "binning"),
            ("YBINNING", 1, "binning"),
            ("GAIN", camera.gain, "[electron/adu]"),
            ("RDNOISE", camera.read_noise, "[electron] read noise"),
            ("SATURATE", round(0.98 * camera.saturation), "[adu] full well"),
            ("BUNIT", "adu", "unit of the pixels"),
            ("BIASSEC", f"[{o.size + 1}:{o.size + camera.overscan},1:{o.size}]", "overscan"),
            ("TRIMSEC", f"[1:{o.size},1:{o.size}]", "where light falls"),
            ("DATASEC", f"[1:{o.size},1:{o.size}]", "where light falls"),
        ]
        if plan.filter:
            cards.append(("FILTER", plan.filter, "filter"))
        header = fits.Header(cards)
        if plan.kind == "light":
            header["AIRMASS"] = (round(plan.airmass, 4), "airmass at the middle of the exposure")
            header["PIXSCALE"] = (o.pixel_scale, "[arcsec] side of a pixel")
            wcs = self.header_wcs(plan).wcs
            for axis in (0, 1):
                header[f"CTYPE{axis + 1}"] = (wcs.ctype[axis], "tangent plane")
                header[f"CUNIT{axis + 1}"] = ("deg", "unit of CRVAL")
                header[f"CRVAL{axis + 1}"] = (wcs.crval[axis], "where the telescope says it points")
                header[f"CRPIX{axis + 1}"] = (wcs.crpix[axis], "in the trimmed frame as in the raw one")
                for other in (0, 1):
                    header[f"CD{axis + 1}_{other + 1}"] = (wcs.cd[axis][other], "[deg] per pixel")
            header["RADESYS"] = ("ICRS", "coordinate system")
        return header

    # Truth ---------------------------------------------------------------------------------------------------------

    def catalogue(self, field: str) -> pd.DataFrame:
        """Return the stars of the field: ra, dec (ICRS degrees) and mag_<filter>, mean magnitudes, to 21st in r."""
        return self.sky(field).catalogue(self.plane_wcs(field))

    def truth(self, field: str, night: str, *, artefacts: bool = False) -> pd.DataFrame:
        """Return, for each exposure of the night, what differs from the template season; see `SURVEY_TRUTH`.

        With `artefacts` the satellite's trail and the cosmic rays stand in it too.
        """
        self.sky(field)
        plans = [p for p in self.plans.values() if p.field == field and p.night == night]
        tables = [exposure_truth(self, plan, artefacts=artefacts) for plan in plans]
        filled = [t for t in tables if len(t)]
        return SURVEY_TRUTH.conform(pd.concat(filled, ignore_index=True)) if filled else SURVEY_TRUTH.empty()
