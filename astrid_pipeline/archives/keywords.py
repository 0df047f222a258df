"""The alias tables: which header keywords say what. AstrID's own, and what a user adds."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from astropy.io import fits

from astrid_pipeline.errors import ConfigError

#: Texts that headers write where they have nothing to say.
NOTHING = {
    "",
    "unknown",
    "n/a",
    "none",
    "null",
    "undef",
    "indef",
    "nan",
    "not available",
    "unspecified",
    "xxxxxx",
}


@dataclass(frozen=True)
class Keywords:
    """Alias tables: which header keywords say what. See `keywords.yaml` for the meaning of each table."""

    keys: Mapping[str, tuple[str, ...]]
    calibrated: Mapping[str, Any] = field(default_factory=dict)
    sky_subtracted: Mapping[str, Any] = field(default_factory=dict)
    resampled: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    filters: tuple[tuple[str, str], ...] = ()
    instruments: tuple[Mapping[str, Any], ...] = ()

    def extended(self, more: Mapping[str, Any], where: str) -> Keywords:
        """Return these tables with those of `more` before them.

        Raises
        ------
        ConfigError
            If `more` has a table that is not known, or one of another form.
        """
        known = set(self.__dataclass_fields__)
        if not isinstance(more, Mapping) or set(more) - known:
            odd = sorted(set(more) - known) if isinstance(more, Mapping) else "no tables"
            raise ConfigError(
                f"has {odd}", where=where, remedy=f"use only the tables {', '.join(sorted(known))}"
            )
        try:
            flags = {
                name: {
                    "present": (
                        *_words(more.get(name, {}).get("present", ())),
                        *getattr(self, name).get("present", ()),
                    ),
                    "match": {**getattr(self, name).get("match", {}), **more.get(name, {}).get("match", {})},
                }
                for name in ("calibrated", "sky_subtracted", "resampled")
            }
            return Keywords(
                keys=_merge(self.keys, more.get("keys", {})),
                kinds=_merge(self.kinds, more.get("kinds", {})),
                units=_merge(self.units, more.get("units", {})),
                filters=(*((str(a), str(b)) for a, b in more.get("filters", ())), *self.filters),
                instruments=(*more.get("instruments", ()), *self.instruments),
                **flags,
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"is not of the form of keywords.yaml: {error}",
                where=where,
                remedy="compare it with that file",
            ) from error

    def for_header(self, header: fits.Header) -> tuple[Mapping[str, tuple[str, ...]], dict[str, Any]]:
        """Return the aliases and fixed values that hold for this header's instrument."""
        keys: Mapping[str, tuple[str, ...]] = self.keys
        fixed: dict[str, Any] = {}
        # The first entry that matches is the user's: apply it last, so that it wins.
        for entry in reversed(self.instruments):
            if _matches(header, entry.get("match", {})):
                keys = _merge(keys, entry.get("keys", {}))
                fixed.update(entry.get("set", {}))
                fixed.update({"dq": entry["dq"]} if "dq" in entry else {})
        return keys, fixed


def load_keywords(*extra: str | Path | Mapping[str, Any] | None) -> Keywords:
    """Return the alias tables: AstrID's own, `$ASTRID_HOME/keywords.yaml` if there is one, and `extra` before both.

    Raises
    ------
    ConfigError
        If a file is absent or is not of the form of `keywords.yaml`.
    """
    tables = _packaged()
    home = os.environ.get("ASTRID_HOME")
    own = Path(home, "keywords.yaml") if home else Path.home() / ".astrid" / "keywords.yaml"
    # os.path: a home that this user may not look into has no table for them, and is no error here.
    for source in ([own] if os.path.isfile(own) else []) + [e for e in extra if e is not None]:
        if isinstance(source, Mapping):
            tables = tables.extended(source, "aliases")
        else:
            tables = tables.extended(_load_yaml(Path(source)), str(source))
    return tables


@lru_cache(maxsize=1)
def _packaged() -> Keywords:
    text = resources.files("astrid_pipeline.archives").joinpath("keywords.yaml").read_text(encoding="utf-8")
    from astrid_pipeline.archives.profiles import instrument_tables

    tables = Keywords(keys={}).extended(yaml.safe_load(text), "keywords.yaml")
    return tables.extended({"instruments": instrument_tables()}, "profiles")


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot be read: {error}", where=path, remedy="give a YAML file of aliases"
        ) from error


def _words(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(v) for v in value)


def _merge(old: Mapping[str, tuple[str, ...]], new: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    out = dict(old)
    for key, words in new.items():
        out[key] = tuple(dict.fromkeys((*_words(words), *old.get(key, ()))))
    return out


def _matches(header: fits.Header, patterns: Mapping[str, str]) -> bool:
    """Whether every keyword's value matches its pattern from its beginning."""
    return bool(patterns) and all(
        re.match(str(pattern), str(header.get(key, "")), re.IGNORECASE) for key, pattern in patterns.items()
    )


def flag(header: fits.Header, table: Mapping[str, Any]) -> bool:
    """Return whether a header has one of the table's keywords, or one whose value matches its pattern."""
    if any(given(header, key) is not None for key in table.get("present", ())):
        return True
    return any(
        re.fullmatch(f"({pattern}).*", str(header.get(key, "")), re.IGNORECASE) and key in header
        for key, pattern in table.get("match", {}).items()
    )


def given(header: Mapping[str, Any], key: str) -> Any:
    """Return a keyword's value, or None if it is absent or says nothing."""
    value = header.get(key)
    if value is None or isinstance(value, fits.card.Undefined):
        return None
    if isinstance(value, str):
        value = value.strip()
        return None if value.lower() in NOTHING else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
