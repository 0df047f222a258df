"""Image servers: hips2fits, SkyView, Pan-STARRS and Legacy Survey cut-outs, from one sky that is made up."""

from __future__ import annotations

import io
import json
import warnings
from urllib.parse import parse_qs

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from astrid_pipeline_tests.archive_server.holdings import recorded
from astrid_pipeline_tests.archive_server.mast import Answer, of_json

#: Stars of the sky, a degree around any centre: spacing of the grid that they sit on, degrees.
STAR_GRID = 0.004


class Images:
    """Cut-outs of a sky whose stars sit on a jittered grid of right ascension and declination.

    Attributes
    ----------
    covered:
        Returns for arrays of (ra, dec) where a survey has data.
    """

    def __init__(self) -> None:
        self.covered = lambda ra, dec: np.isfinite(ra)
        self.epochs = (51000.0, 54000.0)

    def answer(self, path: str, query: str, base: str) -> Answer | None:
        """Return the reply, or None for an address that is no image server's."""
        asked = {key: values[0] for key, values in parse_qs(query, keep_blank_values=True).items()}
        if path.endswith("/hips2fits"):
            return self._hips(asked)
        if path == "/current/cgi/basicform.pl":
            return Answer(recorded("query_page.html", "astroquery.skyview.tests.data"), "text/html")
        if path in ("/current/cgi/runquery.pl", "/current/cgi/titlepage.pl"):
            links = f'<a href="{base}/tempspace/skv.fits?{query}">FITS</a>'
            return Answer(f"<html><body>{links}</body></html>".encode(), "text/html")
        if path == "/tempspace/skv.fits":
            return self._skyview(asked)
        if path == "/cgi-bin/ps1filenames.py":
            return self._ps1_names(asked)
        if path == "/cgi-bin/fitscut.cgi":
            return self._ps1(asked)
        if path == "/viewer/cutout.fits":
            return self._legacy(asked)
        return None

    def sky(self, wcs: WCS, shape: tuple[int, int], seeing_px: float = 3.0) -> np.ndarray:
        """Return the sky on a grid in nanomaggies a pixel: stars of 18–22 mag on a flat sky of zero."""
        y, x = np.mgrid[: shape[0], : shape[1]]
        image = np.zeros(shape)
        ra, dec = wcs.all_pix2world(x, y, 0)
        i0, i1 = np.floor(ra.min() / STAR_GRID), np.ceil(ra.max() / STAR_GRID)
        j0, j1 = np.floor(dec.min() / STAR_GRID), np.ceil(dec.max() / STAR_GRID)
        sigma = seeing_px / 2.355
        stars = []
        for i in np.arange(i0, i1 + 1):
            for j in np.arange(j0, j1 + 1):
                rng = np.random.default_rng([int(i) & 0xFFFFFF, int(j) & 0xFFFFFF])
                place = ((i + rng.uniform(0.2, 0.8)) * STAR_GRID, (j + rng.uniform(0.2, 0.8)) * STAR_GRID)
                stars.append((*place, 10 ** (-0.4 * (rng.uniform(18, 22) - 22.5))))
        table = np.array(stars)
        half = int(6 * sigma) + 2
        for (px, py), flux in zip(wcs.all_world2pix(table[:, :2], 0), table[:, 2], strict=True):
            rows = slice(max(0, int(py) - half), max(0, int(py) + half + 1))
            columns = slice(max(0, int(px) - half), max(0, int(px) + half + 1))
            r2 = (x[rows, columns] - px) ** 2 + (y[rows, columns] - py) ** 2
            image[rows, columns] += flux / (2 * np.pi * sigma**2) * np.exp(-r2 / (2 * sigma**2))
        image += np.random.default_rng(int(abs(ra.mean()) * 1000)).normal(0, 0.02, shape)
        return np.where(self.covered(ra, dec), image, np.nan)

    def _hips(self, asked: dict[str, str]) -> Answer:
        if "wcs" in asked:
            header = fits.Header()
            for key, value in json.loads(asked["wcs"]).items():
                header[key] = value
            shape = (int(header["NAXIS2"]), int(header["NAXIS1"]))
            wcs = WCS(header)
        else:
            shape = (int(asked["height"]), int(asked["width"]))
            wcs = _tan(float(asked["ra"]), float(asked["dec"]), float(asked["fov"]) / shape[1], shape)
        return _fits(self.sky(wcs, shape), wcs, HIPS=asked.get("hips", ""))

    def _skyview(self, asked: dict[str, str]) -> Answer:
        ra, dec = (float(part) for part in asked["Position"].replace(",", " ").split())
        size = float(asked.get("size", "0.1").split(",")[0])
        width = int(asked.get("pixels", "300").split(",")[0])
        wcs = _tan(ra, dec, size / width, (width, width))
        return _fits(self.sky(wcs, (width, width)), wcs, SURVEY=asked.get("survey", "DSS"), EPOCH=1991.0)

    def _ps1_names(self, asked: dict[str, str]) -> Answer:
        band = asked.get("filters", "r")
        lines = ["projcell subcell ra dec filter mjd type filename shortname badflag"]
        for kind in asked.get("type", "stack").split(","):
            name = f"/rings.v3.skycell/2000/010/rings.v3.skycell.2000.010.{kind}.unconv.fits"
            short = name.rsplit("/", 1)[1].replace("stk", f"stk.{band}")
            lines.append(f"2000 010 {asked['ra']} {asked['dec']} {band} 0.0 {kind} {name} {short} 0")
        return Answer("\n".join(lines).encode(), "text/plain")

    def _ps1(self, asked: dict[str, str]) -> Answer:
        """Return a stack cut-out in Pan-STARRS' asinh counts; its mask and weight where asked."""
        size = int(asked.get("size", "240"))
        wcs = _tan(float(asked["ra"]), float(asked["dec"]), 0.25 / 3600, (size, size))
        red = asked.get("red", "")
        seconds = 600.0
        if "stack.mask" in red:
            return _fits(np.zeros((size, size), np.int32), wcs)
        if "stack.wt" in red:
            counts = self.sky(wcs, (size, size)) * 10**1.0 * seconds
            return _fits(np.full((size, size), np.nanstd(counts) ** 2), wcs)
        # Counts so that mag = 25 − 2.5 lg(counts / s): 22.5 mag is ten counts a second.
        counts = self.sky(wcs, (size, size)) * 10**1.0 * seconds
        alpha = 2.5 / np.log(10)
        softening, offset = 100.0, 10.0
        scaled = alpha * np.arcsinh((counts - offset) / (2 * softening))
        return _fits(
            scaled,
            wcs,
            BSOFTEN=softening,
            BOFFSET=offset,
            EXPTIME=seconds,
            FPA_ZP=25.0,
            **{
                "MJD-OBS": self.epochs[0],
                "NINPUTS": 2,
                "MJD_0000": self.epochs[0],
                "MJD_0001": self.epochs[1],
            },
        )

    def _legacy(self, asked: dict[str, str]) -> Answer:
        size = int(asked.get("size", "256"))
        scale = float(asked.get("pixscale", "0.262")) / 3600
        wcs = _tan(float(asked["ra"]), float(asked["dec"]), scale, (size, size))
        image = self.sky(wcs, (size, size))
        if "invvar" in asked or asked.get("subimage") is not None:
            hdus = [fits.PrimaryHDU(), _hdu(image, wcs), _hdu(np.full_like(image, 1 / 0.02**2), wcs)]
            buffer = io.BytesIO()
            fits.HDUList(hdus).writeto(buffer)
            return Answer(buffer.getvalue(), "application/fits")
        return _fits(image, wcs, BANDS=asked.get("bands", "r"), SURVEY=asked.get("layer", "ls-dr10"))


def _tan(ra: float, dec: float, scale: float, shape: tuple[int, int]) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cdelt = [-scale, scale]
    return wcs


def _hdu(image: np.ndarray, wcs: WCS) -> fits.ImageHDU:
    return fits.ImageHDU(np.asarray(image, np.float32), wcs.to_header())


def _fits(image: np.ndarray, wcs: WCS, **cards: object) -> Answer:
    kind = np.int32 if image.dtype.kind == "i" else np.float32
    hdu = fits.PrimaryHDU(image.astype(kind), wcs.to_header())
    for key, value in cards.items():
        hdu.header[key] = value
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hdu.writeto(buffer)
    return Answer(buffer.getvalue(), "application/fits")


__all__ = ["Images", "of_json"]
