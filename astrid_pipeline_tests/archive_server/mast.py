"""MAST's protocol: invoke queries, counts, products, downloads, tokens, names, TESSCut."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from astropy.io import fits

from astrid_pipeline_tests.archive_server.holdings import (
    OBSERVATION_FIELDS,
    PRODUCT_FIELDS,
    Holdings,
    recorded,
)


@dataclass
class Answer:
    """A reply before any fault."""

    body: bytes
    kind: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def of_json(value: Any, status: int = 200) -> Answer:
    """Return a JSON reply."""
    return Answer(json.dumps(value).encode(), status=status)


class Mast:
    """Answers requests to MAST's addresses from the holdings.

    Parameters
    ----------
    holdings:
        What the archive has.
    page_size:
        Rows of a page at most, as the service's own limit.
    """

    def __init__(self, holdings: Holdings, page_size: int = 50_000) -> None:
        self.holdings = holdings
        self.page_size = page_size
        self.columns = json.loads(recorded("columnsconfig.json"))

    def answer(
        self, method: str, path: str, query: str, body: str, headers: Mapping[str, str]
    ) -> Answer | None:
        """Return the reply, or None for an address that is not MAST's."""
        routes: dict[str, Callable[[], Answer]] = {
            "/api/v0/invoke": lambda: self._invoke(body or query),
            "/portal/Mashup/Mashup.asmx/columnsconfig": lambda: of_json(self.columns),
            "/api/v0.1/Download/file": lambda: self._download(query, headers),
            "/api/v0.1/path_lookup": lambda: self._paths(query),
            "/whoami": lambda: self._who(headers),
            "/Santa-war/query": lambda: self._names(query),
            "/tesscut/api/v0.1/sector": lambda: Answer(recorded("tess_sector.json")),
            "/tesscut/api/v0.1/astrocut": lambda: self._astrocut(query),
        }
        route = routes.get(path.rstrip("/"))
        return None if route is None else route()

    def _invoke(self, text: str) -> Answer:
        request = json.loads(parse_qs(text)["request"][0])
        service, params = request["service"], request.get("params", {})
        if service in ("Mast.Caom.Filtered", "Mast.Caom.Filtered.Position"):
            rows = self.holdings.select(params.get("filters", []), params.get("position"))
            if params.get("columns", "*").upper().startswith("COUNT"):
                return of_json(_envelope([{"Column1": str(len(rows))}], {"Column1": "string"}, 1, 50_000))
            fields = OBSERVATION_FIELDS
        elif service == "Mast.Caom.Cone":
            where = f"{params['ra']}, {params['dec']}, {params['radius']}"
            rows, fields = self.holdings.select([], where), OBSERVATION_FIELDS
        elif service == "Mast.Caom.Products":
            wanted = str(params["obsid"]).split(",")
            rows = [dict(row) for obsid in wanted for row in self.holdings.products.get(obsid, [])]
            fields = PRODUCT_FIELDS
        elif service == "Mast.Name.Lookup":
            return self._names(f"name={params['input']}")
        else:
            return of_json({"status": "ERROR", "msg": f"unknown service {service}", "data": [], "fields": []})
        size = min(int(request.get("pagesize", self.page_size)), self.page_size)
        return of_json(_envelope(rows, fields, int(request.get("page", 1)), size))

    def _download(self, query: str, headers: Mapping[str, str]) -> Answer:
        uri = parse_qs(query).get("uri", [""])[0]
        if uri not in self.holdings.files:
            return of_json({"message": "no such file"}, 404)
        if uri in self.holdings.exclusive and self._token(headers) not in self.holdings.tokens:
            return of_json({"message": "exclusive access"}, 401)
        body = self.holdings.files[uri]()
        return Answer(body, "application/fits", headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    @staticmethod
    def _token(headers: Mapping[str, str]) -> str:
        for part in headers.get("Cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == "mast_token":
                return value
        return headers.get("Authorization", "").removeprefix("token ").strip()

    def _who(self, headers: Mapping[str, str]) -> Answer:
        known = self._token(headers) in self.holdings.tokens
        who = {"display_name": "A. Tester"} if known else {}
        return of_json(
            {"anon": not known, "attrib": who, "scopes": ["mast:exclusive_access"] if known else []}
        )

    def _names(self, query: str) -> Answer:
        names = [name.lower() for name in parse_qs(query).get("name", [])]
        return of_json({"resolvedCoordinate": [n for n in self.holdings.names if n["searchString"] in names]})

    def _paths(self, query: str) -> Answer:
        uris = parse_qs(query).get("uri", [])
        return of_json(
            {
                uri: {"status_code": 200, "path": "/" + uri.removeprefix("mast:").lower()}
                if uri in self.holdings.files
                else {"status_code": 404, "path": None}
                for uri in uris
            }
        )

    def _astrocut(self, query: str) -> Answer:
        """Return a cut-out cube in a zip: the recorded one for its own place, else one made with real layout."""
        asked = {key: values[0] for key, values in parse_qs(query).items()}
        ra, dec, size = float(asked["ra"]), float(asked["dec"]), int(float(asked["x"]))
        if (round(ra, 2), round(dec, 2), size) == (107.27, -70.0, 5):
            return Answer(recorded("astrocut_107.27_-70.0_5x5.zip"), "application/zip")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            name = f"tess-s0001-4-3_{ra}_{dec}_{size}x{size}_astrocut.fits"
            archive.writestr(name, _target_pixel_file(ra, dec, size))
        return Answer(buffer.getvalue(), "application/zip")


def _target_pixel_file(ra: float, dec: float, size: int) -> bytes:
    """Return a cut-out of another place and size in the layout of the recorded one."""
    with zipfile.ZipFile(io.BytesIO(recorded("astrocut_107.27_-70.0_5x5.zip"))) as archive:
        template = fits.open(io.BytesIO(archive.read(archive.namelist()[0])))
    table = template[1]
    rows = len(table.data)
    rng = np.random.default_rng(size)
    columns = []
    for column in table.columns:
        array = table.data[column.name]
        if array.ndim == 3:
            array = np.broadcast_to(rng.normal(100, 5, (rows, size, size)), (rows, size, size)).astype(
                array.dtype
            )
            letter = {"f": "E", "i": "J"}[array.dtype.kind]
            columns.append(
                fits.Column(column.name, f"{size * size}{letter}", dim=f"({size},{size})", array=array)
            )
        else:
            columns.append(fits.Column(column.name, column.format, unit=column.unit, array=array))
    made = fits.BinTableHDU.from_columns(columns, name="PIXELS")
    reserved = (
        "TTYPE",
        "TFORM",
        "TDIM",
        "TUNIT",
        "NAXIS",
        "BITPIX",
        "XTENSION",
        "PCOUNT",
        "GCOUNT",
        "TFIELDS",
    )
    for card in table.header.cards:
        if card.keyword and not card.keyword.startswith(reserved) and card.keyword not in made.header:
            made.header.append(card)
    reference = template[2].header
    for key in [key for key in reference if key.startswith(("A_", "B_", "AP_", "BP_"))]:
        del reference[key]
    # Undistorted, and with the asked position in the middle.
    for key, value in {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec}.items():
        reference[key] = value
    reference["CRPIX1"] = reference["CRPIX2"] = (size + 1) / 2
    reference["LATPOLE"] = dec
    template[0].header["RA_OBJ"], template[0].header["DEC_OBJ"] = ra, dec
    aperture = fits.ImageHDU(np.ones((size, size), np.int32), template[2].header, name="APERTURE")
    buffer = io.BytesIO()
    fits.HDUList([template[0], made, aperture]).writeto(buffer)
    return buffer.getvalue()


def _envelope(rows: list[dict[str, Any]], fields: Mapping[str, str], page: int, size: int) -> dict[str, Any]:
    pages = max(1, -(-len(rows) // size))
    shown = rows[(page - 1) * size : page * size]
    known = {name: kind for name, kind in fields.items() if not shown or any(name in row for row in shown)}
    return {
        "status": "COMPLETE",
        "msg": "",
        "fields": [{"name": name, "type": kind} for name, kind in known.items()],
        "data": shown,
        "paging": {
            "page": page,
            "pageSize": size,
            "pagesFiltered": pages,
            "rows": len(shown),
            "rowsFiltered": len(rows),
            "rowsTotal": len(rows),
        },
    }
