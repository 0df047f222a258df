"""How the products are cut up: by sky field (dynamic) and night (daily).

Dagster orders the dimensions of a key by name, so a field-night is always written `field|night` and an
instrument-night `instrument|night`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import date

import dagster as dg

from astrid_pipeline.errors import ConfigError
from astrid_pipeline.settings import get_settings

FIELDS = dg.DynamicPartitionsDefinition(name="fields")
INSTRUMENTS = dg.DynamicPartitionsDefinition(name="instruments")
# end_offset=1: the night that has begun is there before it is over, so that exposures can be treated as they come.
NIGHTS = dg.DailyPartitionsDefinition(start_date=get_settings().first_night.isoformat(), end_offset=1)
FIELD_NIGHTS = dg.MultiPartitionsDefinition({"field": FIELDS, "night": NIGHTS})
INSTRUMENT_NIGHTS = dg.MultiPartitionsDefinition({"instrument": INSTRUMENTS, "night": NIGHTS})

with warnings.catch_warnings():
    # Dagster calls these mappings beta, in every process that loads the definitions; its version is pinned.
    warnings.simplefilter("ignore", dg.BetaWarning)
    #: A field's nights all belong to the field's references, and the other way round.
    FIELD_OF_NIGHT = dg.MultiToSingleDimensionPartitionMapping("field")
    #: The masters of any instrument of the same night.
    SAME_NIGHT = dg.MultiPartitionMapping(
        {"night": dg.DimensionPartitionMapping("night", dg.IdentityPartitionMapping())}
    )


@dataclass(frozen=True)
class FieldNight:
    """One partition of the nightly assets."""

    field: str
    night: str

    @property
    def key(self) -> str:
        """The partition key, `field|night`."""
        return f"{self.field}|{self.night}"

    @classmethod
    def parse(cls, key: str) -> FieldNight:
        """Return the field and night of a key.

        Raises
        ------
        ConfigError
            If the key is not `field|YYYY-MM-DD`.
        """
        name, separator, night = key.rpartition("|")
        try:
            date.fromisoformat(night)
        except ValueError as error:
            raise ConfigError("not a night", where=key, remedy="write it as FIELD|YYYY-MM-DD") from error
        if not separator or not name:
            raise ConfigError("not a field and night", where=key, remedy="write it as FIELD|YYYY-MM-DD")
        return cls(name, night)

    @classmethod
    def of(cls, context: dg.AssetExecutionContext) -> FieldNight:
        """Return the partition a run works on."""
        return cls.parse(str(context.partition_key))


def require_night_in_range(night: str) -> None:
    """Check that `night` is a partition.

    Raises
    ------
    ConfigError
        If it lies before the first night that AstrID was told of.
    """
    first = get_settings().first_night.isoformat()
    if night < first:
        raise ConfigError(
            f"the night {night} is before the first night {first}",
            where="ASTRID_FIRST_NIGHT",
            remedy=f"set ASTRID_FIRST_NIGHT to {night} or earlier",
        )
