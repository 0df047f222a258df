"""A large area cut into fields along HEALPix cells, so that every pointing belongs to exactly one of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy import units
from astropy_healpix import HEALPix

from astrid_pipeline.archives.base import Field
from astrid_pipeline.archives.grouping import separation
from astrid_pipeline.errors import ConfigError

#: Fields that an area is cut into at most. Partitions are fields × nights, and the Dagster page is quick up to some
#: 50,000: 300 fields have room for half a year of nights, which a rolling first night keeps.
MAX_FIELDS = 300
#: Cells of this order are 0.11° wide: smaller ones than any camera's field make no sense.
MAX_ORDER = 9


@dataclass(frozen=True)
class Cell:
    """One HEALPix cell: its order and its index in the nested scheme; as text ``order/index``."""

    order: int
    index: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Return the cell of ``order/index``.

        Raises
        ------
        ConfigError
            If there is no such cell.
        """
        try:
            order, index = (int(part) for part in text.split("/"))
        except ValueError as error:
            raise ConfigError(
                f"{text!r} is no cell", remedy="write it as ORDER/INDEX, as in 5/1234"
            ) from error
        if not (0 <= order <= 29 and 0 <= index < 12 * 4**order):
            raise ConfigError(
                f"there is no cell {text}", remedy=f"order {order} has cells up to {12 * 4**order - 1}"
            )
        return cls(order, index)

    def __str__(self) -> str:
        return f"{self.order}/{self.index}"

    @property
    def centre(self) -> tuple[float, float]:
        """ICRS degrees of its middle."""
        lon, lat = _grid(self.order).healpix_to_lonlat([self.index])
        return float(lon.deg[0]), float(lat.deg[0])

    @property
    def radius(self) -> float:
        """Degrees from its middle to its farthest corner."""
        lon, lat = _grid(self.order).boundaries_lonlat([self.index], step=4)
        ra, dec = self.centre
        return max(separation(ra, dec, a, b) for a, b in zip(lon.deg[0], lat.deg[0], strict=True))

    def holds(self, ra: float, dec: float) -> bool:
        """Return whether a position is in the cell."""
        return int(cells_of([ra], [dec], self.order)[0]) == self.index


def _grid(order: int) -> HEALPix:
    return HEALPix(nside=2**order, order="nested")


def cells_of(ra: npt.ArrayLike, dec: npt.ArrayLike, order: int) -> npt.NDArray[np.int64]:
    """Return the nested index of each position's cell; ICRS degrees in."""
    lon, lat = np.asarray(ra, float) * units.deg, np.asarray(dec, float) * units.deg
    return np.asarray(_grid(order).lonlat_to_healpix(lon, lat), np.int64)


def tile_circle(pattern: Field, max_fields: int = MAX_FIELDS, order: int | None = None) -> list[Field]:
    """Return the fields that cover a circle.

    Parameters
    ----------
    pattern:
        Name, centre and radius of the circle; all else is taken over by its fields.
    max_fields:
        At most so many; the smallest cells that keep to it are taken.
    order:
        HEALPix order of the cells, where one is wanted.

    Raises
    ------
    ConfigError
        If the area has no position, or the wanted order makes too many fields.
    """
    if not math.isfinite(pattern.ra):
        raise ConfigError("the area has no position", where=pattern.name, remedy="give it a centre")

    def inside(level: int) -> list[int]:
        found = _grid(level).cone_search_lonlat(
            pattern.ra * units.deg, pattern.dec * units.deg, radius=pattern.radius * units.deg
        )
        return sorted(int(index) for index in found)

    if order is not None:
        chosen = inside(order)
        if len(chosen) > max_fields:
            raise ConfigError(
                f"cells of order {order} make {len(chosen)} fields, more than {max_fields}",
                where=pattern.name,
                remedy="take a lower order: the Dagster page is quick up to some 50,000 fields × nights",
            )
        return [_field(pattern, Cell(order, index)) for index in chosen]
    level, chosen = 0, inside(0)
    for finer in range(1, MAX_ORDER + 1):
        if len(cells := inside(finer)) > max_fields:
            break
        level, chosen = finer, cells
    return [_field(pattern, Cell(level, index)) for index in chosen]


def tile_pointings(
    pattern: Field, ra: Sequence[float], dec: Sequence[float], max_fields: int = MAX_FIELDS
) -> list[Field]:
    """Return at most `max_fields` fields that hold all pointings of a survey, each pointing in one.

    Parameters
    ----------
    pattern:
        What the fields have in common; their names begin with its name.
    ra, dec:
        Centres of the pointings, ICRS degrees.
    """
    if len(ra) == 0:
        return []
    level, chosen = 0, np.unique(cells_of(ra, dec, 0))
    for finer in range(1, MAX_ORDER + 1):
        cells = np.unique(cells_of(ra, dec, finer))
        if len(cells) > max_fields:
            break
        level, chosen = finer, cells
    return [_field(pattern, Cell(level, int(index))) for index in chosen]


def _field(pattern: Field, cell: Cell) -> Field:
    ra, dec = cell.centre
    name = f"{pattern.name}-{cell.order}.{cell.index}"
    return dataclasses.replace(pattern, name=name, ra=ra, dec=dec, radius=cell.radius, cell=str(cell))
