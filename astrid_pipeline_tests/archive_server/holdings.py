"""What the local archive holds: observations, their products, and FITS files made when they are asked for."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from astropy.io import fits

#: Columns of an observation, with the type that the service tells.
OBSERVATION_FIELDS = {
    "intentType": "string",
    "obs_collection": "string",
    "provenance_name": "string",
    "instrument_name": "string",
    "project": "string",
    "filters": "string",
    "wavelength_region": "string",
    "target_name": "string",
    "target_classification": "string",
    "obs_id": "string",
    "s_ra": "float",
    "s_dec": "float",
    "dataproduct_type": "string",
    "proposal_pi": "string",
    "calib_level": "int",
    "t_min": "float",
    "t_max": "float",
    "t_exptime": "float",
    "em_min": "float",
    "em_max": "float",
    "obs_title": "string",
    "t_obs_release": "float",
    "proposal_id": "string",
    "s_region": "string",
    "jpegURL": "string",
    "dataURL": "string",
    "dataRights": "string",
    "mtFlag": "boolean",
    "obsid": "string",
    "objID": "string",
    "distance": "float",
}
PRODUCT_FIELDS = {
    "obsID": "string",
    "obs_collection": "string",
    "dataproduct_type": "string",
    "obs_id": "string",
    "description": "string",
    "type": "string",
    "dataURI": "string",
    "productType": "string",
    "productGroupDescription": "string",
    "productSubGroupDescription": "string",
    "productDocumentationURL": "string",
    "project": "string",
    "prvversion": "string",
    "productFilename": "string",
    "size": "int",
    "dataRights": "string",
    "calib_level": "int",
    "filters": "string",
}


def recorded(name: str, package: str = "astroquery.mast.tests.data") -> bytes:
    """Return an answer of the real service, as astroquery ships it with its own tests."""
    return files(package).joinpath(name).read_bytes()


def make_fits(
    identity: str,
    ra: float,
    dec: float,
    mjd: float,
    filter_name: str,
    *,
    collection: str = "HST",
    instrument: str = "WFC3",
    exposure: float = 600.0,
    size: int = 64,
    scale: float = 0.1283,
) -> bytes:
    """Return a calibrated frame as bytes: sky, a dozen stars, WCS and CHECKSUM; the same arguments, the same bytes."""
    rng = np.random.default_rng(zlib.crc32(identity.encode()))
    y, x = np.mgrid[:size, :size]
    image = rng.normal(1.0, 0.05, (size, size))
    stars = np.random.default_rng(zlib.crc32(f"{ra:.3f} {dec:.3f}".encode()))
    for _ in range(12):
        sx, sy, flux = stars.uniform(4, size - 4), stars.uniform(4, size - 4), stars.uniform(20, 200)
        image += flux / (2 * np.pi * 1.5**2) * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * 1.5**2))
    primary = fits.PrimaryHDU()
    for key, value in {
        "TELESCOP": collection,
        "INSTRUME": instrument,
        "FILTER": filter_name,
        "EXPTIME": exposure,
        "TEXPTIME": exposure,
        "MJD-AVG": mjd,
        "ROOTNAME": identity,
        "FLATCORR": "COMPLETE",
    }.items():
        primary.header[key] = value
    science = fits.ImageHDU(image.astype(np.float32), name="SCI")
    for key, value in {
        "BUNIT": "ELECTRONS/S",
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CRPIX1": (size + 1) / 2,
        "CRPIX2": (size + 1) / 2,
        "CD1_1": -scale / 3600,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "CD2_2": scale / 3600,
    }.items():
        science.header[key] = value
    buffer = io.BytesIO()
    hdus = fits.HDUList([primary, science])
    for hdu in hdus:
        # Checksums carry the time they were made at in their comment; it is fixed for equal bytes.
        hdu.add_checksum(when="2026-01-01T00:00:00")
    hdus.writeto(buffer)
    return buffer.getvalue()


class Holdings:
    """Observations, products and files.

    Attributes
    ----------
    rows:
        Observations, as the service's columns.
    products:
        Products by `obsid`.
    files:
        What makes a file's bytes, by its URI.
    tokens:
        Tokens that open what is exclusive.
    names:
        What the name resolver knows, as its own records.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.products: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, Callable[[], bytes]] = {}
        self.exclusive: set[str] = set()
        self.tokens: set[str] = set()
        self.names: list[dict[str, Any]] = json.loads(recorded("resolver.json"))["resolvedCoordinate"]
        self._next = 100_000_001

    @classmethod
    def of_recorded_answers(cls) -> Holdings:
        """Return the observations and products of the answers that astroquery's own tests recorded."""
        made = cls()
        for name in ("caom.json", "advSearch.json", "advSearchPos.json"):
            for row in json.loads(recorded(name))["data"]:
                made.rows.append({**row, "obsid": str(row["obsid"])})
        for row in json.loads(recorded("products.json"))["data"]:
            made.products.setdefault(str(row["obsID"]), []).append(row)
            made.files[row["dataURI"]] = lambda uri=row["dataURI"]: make_fits(
                uri, 210.8, 54.3, 54000.0, "F606W"
            )
        return made

    def add(
        self,
        obs_id: str,
        ra: float,
        dec: float,
        mjd: float,
        filter_name: str,
        *,
        collection: str = "HST",
        instrument: str = "WFC3/IR",
        exposure: float = 600.0,
        release: float | None = None,
        exclusive: bool = False,
        calib_level: int = 2,
        kinds: tuple[str, ...] = ("FLT",),
        data_url: bool = True,
        **columns: Any,
    ) -> dict[str, Any]:
        """Add an observation with one FITS product of each kind, and previews that nobody wants; return its row."""
        obsid = str(self._next)
        self._next += 1
        uris = []
        for kind in kinds:
            name = f"{obs_id.lower()}_{kind.lower()}.fits"
            uri = f"mast:{collection}/product/{name}"
            content = make_fits(obs_id, ra, dec, mjd, filter_name, collection=collection,
                                instrument=instrument.split("/")[0], exposure=exposure)  # fmt: skip
            self.files[uri] = lambda content=content: content
            if exclusive:
                self.exclusive.add(uri)
            uris.append(uri)
            self._product(
                obsid, obs_id, uri, kind, "SCIENCE", len(content), collection, exclusive, calib_level
            )
        preview = f"mast:{collection}/product/{obs_id.lower()}_preview.jpg"
        self._product(obsid, obs_id, preview, "PREVIEW", "PREVIEW", 5000, collection, exclusive, calib_level)
        row = {
            **dict.fromkeys(OBSERVATION_FIELDS),
            "intentType": "science",
            "obs_collection": collection,
            "instrument_name": instrument,
            "project": collection,
            "filters": filter_name,
            "target_name": "FIELD",
            "obs_id": obs_id,
            "s_ra": ra,
            "s_dec": dec,
            "dataproduct_type": "image",
            "calib_level": calib_level,
            "t_min": mjd - exposure / 2 / 86400,
            "t_max": mjd + exposure / 2 / 86400,
            "t_exptime": exposure,
            "t_obs_release": mjd + 1 if release is None else release,
            "s_region": f"CIRCLE ICRS {ra:.6f} {dec:.6f} 0.02",
            "dataURL": uris[0] if data_url and uris else None,
            "dataRights": "EXCLUSIVE_ACCESS" if exclusive else "PUBLIC",
            "obsid": obsid,
            "objID": obsid,
            **columns,
        }
        self.rows.append(row)
        return row

    def _product(
        self,
        obsid: str,
        obs_id: str,
        uri: str,
        kind: str,
        product_type: str,
        size: int,
        collection: str,
        exclusive: bool,
        calib_level: int,
    ) -> None:
        self.products.setdefault(obsid, []).append(
            {
                **dict.fromkeys(PRODUCT_FIELDS),
                "obsID": obsid,
                "obs_collection": collection,
                "dataproduct_type": "image",
                "obs_id": obs_id,
                "type": "S",
                "dataURI": uri,
                "productType": product_type,
                "productSubGroupDescription": kind,
                "productFilename": uri.rsplit("/", 1)[1],
                "size": size,
                "calib_level": calib_level,
                "dataRights": "EXCLUSIVE_ACCESS" if exclusive else "PUBLIC",
            }
        )

    def select(self, filters: list[Mapping[str, Any]], position: str | None) -> list[dict[str, Any]]:
        """Return the observations that satisfy the service's filters, with their distance in arcsec."""
        rows = self.rows
        if position:
            ra, dec, radius = (float(part) for part in position.split(","))
            rows = [{**row, "distance": _distance(row, ra, dec) * 3600} for row in rows]
            rows = [row for row in rows if row["distance"] <= radius * 3600]
        return [dict(row) for row in rows if all(_passes(row, each) for each in filters)]


def _distance(row: Mapping[str, Any], ra: float, dec: float) -> float:
    from astrid_pipeline.archives.grouping import separation

    return separation(row["s_ra"], row["s_dec"], ra, dec)


def _passes(row: Mapping[str, Any], one: Mapping[str, Any]) -> bool:
    value = row.get(one["paramName"])
    for wanted in one.get("values", ()):
        if isinstance(wanted, Mapping):
            if value is not None and float(wanted["min"]) <= float(value) <= float(wanted["max"]):
                return True
        elif str(value) == str(wanted) or (
            one.get("separator") and str(wanted) in str(value).split(one["separator"])
        ):
            return True
    text = one.get("freeText")
    if text and value is not None:
        import fnmatch

        return fnmatch.fnmatchcase(str(value).upper(), text.upper().replace("%", "*"))
    return False
