"""What is known of each survey's images: data files under `profiles/`, one an instrument.

A profile says by which keywords its files are known, what pixel scale and sharpness to expect, which keywords hold
gain and saturation, what the quality bits mean, and in which system the magnitudes are. Its `keywords` join the
alias tables that headers are read through (`keywords.yaml`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from astrid_pipeline.errors import ConfigError

_KEYS = frozenset(
    {
        "title",
        "match",
        "pixel_scale",
        "psf_fwhm",
        "photometric_system",
        "gain",
        "saturation",
        "site",
        "mast",
        "keywords",
    }
)
#: A measured width beyond the expected range by this factor is remarked upon.
FWHM_MARGIN = 1.3
#: Drizzled and binned images are on other scales than the detector: beyond these factors it is another camera.
SCALE_BELOW, SCALE_ABOVE = 0.4, 4.5


@dataclass(frozen=True)
class Profile:
    """One instrument.

    Attributes
    ----------
    name, title:
        Of the file, and for people.
    match:
        Keyword: regular expression its value begins with; all must hold.
    pixel_scale, psf_fwhm:
        Smallest and largest to be expected, arcsec.
    photometric_system:
        In words.
    gain, saturation:
        Keywords that hold them.
    site:
        A name of `sites.yaml`; None where it is not one place.
    mast:
        `collection`, and `products` in the order of preference.
    keywords:
        An entry for the alias tables' `instruments`, without its match.
    """

    name: str
    title: str
    match: Mapping[str, str]
    pixel_scale: tuple[float, float]
    psf_fwhm: tuple[float, float]
    photometric_system: str
    gain: tuple[str, ...] = ()
    saturation: tuple[str, ...] = ()
    site: str | None = None
    mast: Mapping[str, Any] = field(default_factory=dict)
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, header: Mapping[str, Any]) -> bool:
        """Return whether a header is of this instrument."""
        return all(
            re.match(pattern, str(header.get(key, "")), re.IGNORECASE) for key, pattern in self.match.items()
        )

    def remarks(self, meta: Mapping[str, Any]) -> list[str]:
        """Return what in a frame's meta is not as expected of this instrument, in words.

        Parameters
        ----------
        meta:
            A calibrated frame's: `pixel_scale` and `seeing_arcsec` are looked at.
        """
        out = []
        scale, seeing = meta.get("pixel_scale"), meta.get("seeing_arcsec")
        low, high = self.pixel_scale
        if scale is not None and not SCALE_BELOW * low <= float(scale) <= SCALE_ABOVE * high:
            out.append(f"a pixel is {float(scale):.3g}″ wide, where {self.title} has {low:g}–{high:g}″")
        low, high = self.psf_fwhm
        if seeing is not None and math.isfinite(float(seeing)) and float(seeing) > FWHM_MARGIN * high:
            out.append(f"stars are {float(seeing):.2g}″ wide, where {self.title} has {low:g}–{high:g}″")
        return out


@cache
def profiles() -> Mapping[str, Profile]:
    """Return all profiles by name.

    Raises
    ------
    ConfigError
        If a file is not of the form of the others.
    """
    out = {}
    for path in sorted(
        resources.files("astrid_pipeline.archives").joinpath("profiles").iterdir(), key=lambda p: p.name
    ):
        if path.name.endswith(".yaml"):
            name = path.name.removesuffix(".yaml")
            out[name] = _profile(name, yaml.safe_load(path.read_text(encoding="utf-8")))
    return out


def _profile(name: str, text: Any) -> Profile:
    where = f"profiles/{name}.yaml"
    if not isinstance(text, Mapping) or (unknown := set(text) - _KEYS):
        what = (
            f"has unknown keys {', '.join(sorted(unknown))}" if isinstance(text, Mapping) else "is no table"
        )
        raise ConfigError(what, where=where, remedy=f"use {', '.join(sorted(_KEYS))}")
    try:
        values = dict(text)
        for pair in ("pixel_scale", "psf_fwhm"):
            low, high = (float(value) for value in values[pair])
            if not 0 < low <= high:
                raise ConfigError(
                    f"{pair} is no range above zero", where=where, remedy="write [SMALLEST, LARGEST]"
                )
            values[pair] = (low, high)
        for words in ("gain", "saturation"):
            values[words] = tuple(values.get(words) or ())
        return Profile(name=name, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"is not of the form of the others: {error}", where=where) from error


def profile_of(header: Mapping[str, Any]) -> Profile:
    """Return the profile of a header: the one with most keywords that match, else the generic one."""
    fitting = [one for one in profiles().values() if one.match and one.matches(header)]
    return max(fitting, key=lambda one: (len(one.match), one.name), default=profiles()["generic"])


def instrument_tables() -> list[dict[str, Any]]:
    """Return the profiles' keywords as entries of the alias tables' `instruments`."""
    return [
        {"name": one.name, "match": one.match, **one.keywords} for one in profiles().values() if one.keywords
    ]


def usual_products(collection: str) -> tuple[str, ...]:
    """Return the kinds of product that are usually wanted of a MAST collection, the best first; empty for any."""
    for one in profiles().values():
        if one.mast.get("collection") == collection.upper():
            return tuple(one.mast.get("products") or ())
    return ()
