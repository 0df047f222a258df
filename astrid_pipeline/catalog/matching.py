"""Matching many positions against a table by its HEALPix index, and users' catalogues to match against."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import delete, insert, select, text

from astrid_pipeline.catalog import sky
from astrid_pipeline.catalog.review_models import CatalogueEntry, UserCatalogue
from astrid_pipeline.catalog.rows import finite, plain
from astrid_pipeline.errors import ReadError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from astrid_pipeline.catalog.catalog import Catalog

KINDS = ("galaxy", "star", "variable", "transient")
#: How far each kind is looked for, arcsec: a host may be wide, everything else is at the spot.
SEARCH_ARCSEC = {"galaxy": 30.0, "star": 2.0, "variable": 2.0, "transient": 3.0}

#: What columns may be called, in lower case, in the order of preference.
_RA = ("ra", "ra_icrs", "raj2000", "_raj2000", "ra_j2000", "ra_deg", "radeg", "alpha", "sn_ra",
       "right_ascension")  # fmt: skip
_DEC = ("dec", "de_icrs", "dej2000", "_dej2000", "dec_j2000", "decl", "dec_deg", "decdeg", "de", "delta", "sn_dec",
        "declination")  # fmt: skip
_NAME = ("name", "sn_name", "objname", "source_id", "gaiadr2", "gaiadr3", "main_id", "object", "id", "recno")
_MAG = ("mag", "gmag", "phot_g_mean_mag", "vmag", "rmag", "imag", "sn_mag")


def match_positions(
    connection: Connection,
    model: type[Any],
    ra: npt.ArrayLike,
    dec: npt.ArrayLike,
    radius: float,
    columns: Sequence[str] = (),
) -> pd.DataFrame:
    """Return all pairs of given positions and rows of a table within `radius` arcsec, nearest first.

    Parameters
    ----------
    model:
        A table with id, ra, dec, hpx29.
    ra, dec:
        ICRS degrees, finite.
    columns:
        Further columns to return.

    Returns
    -------
    DataFrame
        `index` (number of the position), id, ra, dec, the columns, and `separation` (arcsec).
    """
    lon, lat = np.atleast_1d(np.asarray(ra, float)) % 360.0, np.atleast_1d(np.asarray(dec, float))
    index, first, last = sky.many_cone_ranges(lon, lat, radius / 3600.0)
    names = ["id", "ra", "dec", *columns]
    wanted = ", ".join(f't."{model.__table__.c[name].name}"' for name in names)
    # A lateral join: for each range one look into the index.
    query = text(
        f"SELECT g.i AS index, {wanted} FROM unnest(cast(:i AS bigint[]), cast(:first AS bigint[]), "
        "cast(:last AS bigint[])) AS g(i, first, last) CROSS JOIN LATERAL (SELECT * FROM "
        f'"{model.__tablename__}" s WHERE s.hpx29 BETWEEN g.first AND g.last) t'
    )
    given = {"i": index.tolist(), "first": first.tolist(), "last": last.tolist()}
    rows = connection.execute(query, given).all()
    # pandas.read_sql takes several times as long for a few rows.
    found = pd.DataFrame(rows, columns=["index", *(model.__table__.c[name].name for name in names)])
    if not len(found):
        return found.assign(separation=pd.Series(dtype=float))
    at = found["index"].to_numpy(int)
    found["separation"] = 3600.0 * sky.separation(
        lon[at], lat[at], found["ra"].to_numpy(float), found["dec"].to_numpy(float)
    )
    return found[found["separation"] <= radius].sort_values(["index", "separation"]).reset_index(drop=True)


def read_catalogue(path: Path) -> pd.DataFrame:
    """Read a catalogue of positions: CSV (any separator), ECSV, Parquet, VOTable or FITS.

    Returns
    -------
    DataFrame
        name, ra, dec (ICRS degrees), mag, and `properties` (all other columns). Positions may be degrees or
        sexagesimal text (then hours for the right ascension). Rows without a position are left out.

    Raises
    ------
    ReadError
        If the file cannot be read, or no columns of positions are found.
    """
    try:
        table = _read(path)
    except Exception as error:
        raise ReadError(
            f"not a table that can be read: {error}", where=path, remedy="use CSV, Parquet, VOTable or FITS"
        ) from error
    table.columns = [str(name).strip() for name in table.columns]
    chosen = {
        what: _first(table, names)
        for what, names in (("ra", _RA), ("dec", _DEC), ("name", _NAME), ("mag", _MAG))
    }
    if chosen["ra"] is None or chosen["dec"] is None:
        raise ReadError(
            f"no columns of positions among {', '.join(table.columns[:20])}",
            where=path,
            remedy="name them ra and dec",
        )
    ra, dec = _degrees(table[chosen["ra"]], hours=True), _degrees(table[chosen["dec"]], hours=False)
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(np.nan_to_num(dec)) <= 90)
    if not good.any():
        raise ReadError("no row has a position", where=path, remedy="give degrees or sexagesimal text")
    others = [name for name in table.columns if name not in chosen.values()]
    names = table[chosen["name"]].astype(str) if chosen["name"] else pd.Series(table.index.astype(str))
    mags = (
        pd.to_numeric(table[chosen["mag"]], errors="coerce")
        if chosen["mag"]
        else pd.Series(np.nan, index=table.index)
    )
    properties = [
        {k: v for k, v in plain(row).items() if v not in (None, "")}
        for row in table[others].to_dict(orient="records")
    ]
    # Without other columns, pandas gives no rows at all.
    properties = properties or [{} for _ in range(len(table))]
    result = pd.DataFrame(
        {
            "name": names.str.strip().to_numpy(),
            "ra": ra % 360.0,
            "dec": dec,
            "mag": mags.to_numpy(float),
            "properties": properties,
        }
    )
    return result[good].reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return pd.read_parquet(path)
    if suffix in (".vot", ".votable", ".xml", ".ecsv", ".fits", ".fit"):
        from astropy.table import Table

        kind = {".ecsv": "ascii.ecsv", ".fits": "fits", ".fit": "fits"}.get(suffix, "votable")
        table: pd.DataFrame = Table.read(path, format=kind).to_pandas()
        return table.map(lambda value: value.decode() if isinstance(value, bytes) else value)
    lines = path.read_text(errors="replace").splitlines()
    # psql and others rule the header off with dashes.
    lines = [line for line in lines if line.strip(" -+|") and not line.startswith("#")]
    # The header says it better than a sniffer, which falls for the blanks of sexagesimal positions.
    separator = next((mark for mark in "|\t;," if mark in (lines[0] if lines else "")), r"\s+")
    table = pd.read_csv(
        io.StringIO("\n".join(lines)),
        sep=re.escape(separator) if len(separator) == 1 else separator,
        engine="python",
        skipinitialspace=True,
        index_col=False,
    )
    table = table.rename(columns=str.strip)
    return table.apply(lambda column: column.str.strip() if pd.api.types.is_string_dtype(column) else column)


def _first(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(list(table.columns))}
    return next((lower[name] for name in names if name in lower), None)


def _degrees(values: pd.Series, *, hours: bool) -> npt.NDArray[np.float64]:
    plain_numbers = pd.to_numeric(values, errors="coerce")
    texts = values.notna() & (values.astype(str).str.strip() != "")
    if plain_numbers.notna().sum() >= 0.5 * max(int(texts.sum()), 1):
        return plain_numbers.to_numpy(float)
    pattern = r"^\s*([+-]?)\s*(\d{1,3})[\s:hd°]+(\d{1,2})(?:[\s:m'′]+([\d.]+))?"
    parts = values.astype(str).str.extract(pattern)
    sign = np.where(parts[0] == "-", -1.0, 1.0)
    number = parts[[1, 2, 3]].astype(float).fillna({3: 0.0})
    degrees = sign * (number[1] + number[2] / 60 + number[3] / 3600)
    return np.asarray(degrees * (15.0 if hours else 1.0), float)


def add_catalogue(catalog: Catalog, name: str, kind: str, path: Path) -> int:
    """Keep a user's catalogue under `name`, in place of an older one; return its number of entries."""
    if kind not in KINDS:
        raise ReadError(
            f"not a kind of catalogue: {kind}", where=path, remedy=f"use one of {', '.join(KINDS)}"
        )
    table = read_catalogue(path)
    index = sky.hpx29(table["ra"].to_numpy(), table["dec"].to_numpy())
    with catalog.transaction(f"keep the catalogue {name}") as connection:
        connection.execute(delete(UserCatalogue).where(UserCatalogue.name == name))
        identity = connection.scalar(
            insert(UserCatalogue)
            .values(
                name=name,
                kind=kind,
                entries=len(table),
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            .returning(UserCatalogue.id)
        )
        rows: list[dict[str, Any]] = [
            {**plain(row), "mag": finite(row["mag"]), "hpx29": int(hpx), "catalogue_id": identity}
            for row, hpx in zip(table.to_dict(orient="records"), index, strict=True)
        ]
        connection.execute(insert(CatalogueEntry), rows)
    return len(table)


def cross_match(catalog: Catalog, ra: npt.ArrayLike, dec: npt.ArrayLike) -> pd.DataFrame:
    """Return what users' catalogues hold at given positions, nearest first.

    Returns
    -------
    DataFrame
        index, name, catalogue, kind, mag, separation (arcsec), properties; each kind within its `SEARCH_ARCSEC`.
    """
    radius = max(SEARCH_ARCSEC.values())
    columns = ["index", "name", "catalogue", "kind", "mag", "separation", "properties"]
    with catalog.reading("match against catalogues") as connection:
        if connection.scalar(select(UserCatalogue.id).limit(1)) is None:
            return pd.DataFrame(columns=columns)
        found = match_positions(
            connection, CatalogueEntry, ra, dec, radius, ["name", "mag", "properties", "catalogue_id"]
        )
        known = pd.DataFrame(
            connection.execute(select(UserCatalogue.id, UserCatalogue.name, UserCatalogue.kind)).all(),
            columns=["catalogue_id", "catalogue", "kind"],
        )
    found = found.merge(known, on="catalogue_id")
    near = found["separation"] <= found["kind"].map(SEARCH_ARCSEC).astype(float)
    return found[near].sort_values(["index", "separation"]).reset_index(drop=True)
