"""Fields between their table and `archives.base.Field`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from astrid_pipeline.catalog.models import SkyField, Survey
from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from astrid_pipeline.archives.base import Field


def field_query() -> Any:
    """Return the query for fields with the name of their archive."""
    return select(
        SkyField.name,
        SkyField.ra,
        SkyField.dec,
        SkyField.radius,
        SkyField.filters,
        Survey.name.label("archive"),
        SkyField.site_longitude,
        SkyField.reference,
        SkyField.poll_minutes,
        SkyField.cell,
    ).join(Survey, Survey.id == SkyField.survey_id)


def as_field(row: Any) -> Field:
    """Return a row of `field_query` as a `Field`."""
    from astrid_pipeline.archives.base import Field

    values = dict(row._mapping)
    for name in ("ra", "dec"):
        values[name] = math.nan if values[name] is None else values[name]
    values["filters"] = tuple(values["filters"])
    return Field(**values)


def field_id_of(connection: Connection, name: str) -> int:
    """Return the id of a field. Raises `ConfigError` if there is none of that name."""
    identity = connection.scalar(select(SkyField.id).where(SkyField.name == name))
    if identity is None:
        raise ConfigError("there is no such field", where=name, remedy="add it with `astrid field add`")
    return int(identity)
