"""When a simulated survey exposes, on what, and under which sky: the plan of all its exposures."""

from __future__ import annotations

import datetime as dt
import math
import zlib
from dataclasses import dataclass

import numpy as np

from astrid_pipeline.errors import ConfigError
from astrid_pipeline.simulation.transients import WAVELENGTHS

#: A made-up observatory in the Chilean Andes: east longitude and latitude, degrees.
SITE_LONGITUDE = -70.7
SITE_LATITUDE = -30.2

#: Evening of the first science night; the survey is the same whenever it is asked for.
FIRST_NIGHT = dt.date(2026, 3, 14)

#: Centres of the fields, degrees: they culminate around midnight then. Further fields follow eastwards.
CENTRES = ((158.30, -29.30), (171.70, -35.80))

#: Magnitude that gives one electron in a second at the zenith, and the dark sky in mag per square arcsecond.
ZERO_POINTS = {"u": 18.6, "g": 20.7, "r": 21.1, "i": 20.8, "z": 20.0}
DARK_SKY = {"u": 22.0, "g": 21.6, "r": 20.8, "i": 19.9, "z": 18.8}
#: Magnitudes lost per unit of airmass.
EXTINCTION = {"u": 0.50, "g": 0.20, "r": 0.10, "i": 0.06, "z": 0.05}

_MJD_ZERO = dt.date(1858, 11, 17)


@dataclass(frozen=True)
class SurveyOptions:
    """What a simulated survey is like.

    Attributes
    ----------
    seed:
        Everything follows from it.
    fields, nights, filters, exposures:
        Science season: exposures per field, night and filter; `cadence` days from night to night.
    templates, template_nights, template_gap:
        Template season: exposures per field and filter, spread over so many nights, so many days before.
    size:
        Side of the imaging area, px; `pixel_scale` arcsec each.
    biases, darks, flats:
        Calibration frames per night (flats: per filter).
    exposure:
        Seconds of a light frame.
    seeing:
        Median FWHM, px.
    supernovae, variables, agn, asteroids:
        Per field of 1024² px (asteroids: per night besides).
    clouds, satellite:
        Whether the third science night (the last, if there are fewer; never the only one) is cloudy, and whether one
        exposure of the second has a satellite's trail.
    """

    seed: int = 1
    fields: int = 2
    nights: int = 4
    filters: tuple[str, ...] = ("g", "r")
    exposures: int = 3
    cadence: int = 3
    templates: int = 5
    template_nights: int = 1
    template_gap: int = 60
    size: int = 1024
    pixel_scale: float = 1.0
    biases: int = 5
    darks: int = 3
    flats: int = 3
    exposure: float = 90.0
    seeing: float = 2.6
    supernovae: int = 10
    variables: int = 14
    agn: int = 4
    asteroids: int = 4
    clouds: bool = True
    satellite: bool = True

    def __post_init__(self) -> None:
        where = "simulated survey"
        object.__setattr__(self, "filters", tuple(self.filters))
        unknown = [band for band in self.filters if band not in WAVELENGTHS]
        if unknown or not self.filters:
            raise ConfigError(
                f"filters {','.join(unknown) or '(none)'} are not known",
                where=where,
                remedy="choose of u, g, r, i, z",
            )
        for name, low, high in (
            ("fields", 1, 20),
            ("nights", 1, 1000),
            ("exposures", 1, 100),
            ("cadence", 1, 100),
            ("templates", 0, 100),
            ("template_nights", 1, 20),
            ("size", 128, 8192),
            ("biases", 0, 100),
            ("darks", 0, 100),
            ("flats", 0, 100),
        ):
            if not low <= getattr(self, name) <= high:
                remedy = f"choose between {low} and {high}"
                raise ConfigError(f"{name}={getattr(self, name)} cannot be", where=where, remedy=remedy)
        if self.template_gap <= self.template_nights * self.cadence:
            raise ConfigError(
                "the template season reaches into the science season",
                where=where,
                remedy="make template_gap larger",
            )

    @property
    def area(self) -> float:
        """The imaging area in units of 1024² px."""
        return (self.size / 1024) ** 2

    def rng(self, *key: str | int) -> np.random.Generator:
        """Return the generator for one purpose: independent of all others, and of the order of asking."""
        words = [k if isinstance(k, int) else zlib.crc32(k.encode()) for k in key]
        return np.random.default_rng([self.seed, *words])


@dataclass(frozen=True)
class Plan:
    """One exposure: what it is of, and the conditions.

    `mjd` is the middle of the exposure. `dither` (px, on the sky plane) and `rotation` (rad) say where the detector
    looked; `pointing_error` (px, px, rad) by how much the header is wrong about it. `transparency` is the share of
    the light above the atmosphere at airmass 1 that arrives; `sky` is in electrons a pixel.
    """

    exposure_id: str
    kind: str
    night: str
    mjd: float
    exposure: float
    field: str = ""
    filter: str = ""
    season: str = ""
    dither: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    pointing_error: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seeing: float = 0.0
    transparency: float = 1.0
    airmass: float = 1.0
    sky: float = 0.0
    satellite: bool = False


def field_name(index: int) -> str:
    """Return the name of a field by its number from 0."""
    return f"sim-{index + 1:02d}"


def field_centre(index: int) -> tuple[float, float]:
    """Return a field's (ra, dec), degrees."""
    if index < len(CENTRES):
        return CENTRES[index]
    return (CENTRES[-1][0] + 9.0 * (index - len(CENTRES) + 1)) % 360, -33.0 + 5.0 * ((index * 7) % 5 - 2)


def nights_of(options: SurveyOptions) -> list[tuple[str, str]]:
    """Return (night, season) in order; the season is "template" or "science"."""
    first_template = FIRST_NIGHT - dt.timedelta(days=options.template_gap)
    nights = []
    if options.templates:
        for i in range(min(options.template_nights, options.templates)):
            nights.append(((first_template + dt.timedelta(days=i)).isoformat(), "template"))
    for i in range(options.nights):
        nights.append(((FIRST_NIGHT + dt.timedelta(days=i * options.cadence)).isoformat(), "science"))
    return nights


def make_schedule(options: SurveyOptions) -> list[Plan]:
    """Return all exposures of the survey in order of time."""
    plans: list[Plan] = []
    nights = nights_of(options)
    science = [night for night, season in nights if season == "science"]
    cloudy = science[min(2, len(science) - 1)] if options.clouds and len(science) > 1 else None
    satellite = science[min(1, len(science) - 1)] if options.satellite else None
    n_template = sum(season == "template" for _, season in nights)
    for index, (night, season) in enumerate(nights):
        plans += _calibrations(options, night)
        count = options.exposures
        if season == "template":
            count = len(range(index, options.templates, n_template))
        plans += _lights(options, night, season, count, cloudy=night == cloudy, satellite=night == satellite)
    return sorted(plans, key=lambda p: (p.mjd, p.exposure_id))


def _mjd(night: str) -> int:
    return (dt.date.fromisoformat(night) - _MJD_ZERO).days


def _calibrations(options: SurveyOptions, night: str) -> list[Plan]:
    """Bias, dark and flat frames of the late afternoon."""
    day = night.replace("-", "")
    kinds = [("bias", "", 0.0)] * options.biases + [("dark", "", 120.0)] * options.darks
    kinds += [("flat", band, 6.0) for band in options.filters for _ in range(options.flats)]
    count: dict[tuple[str, str], int] = {}
    plans, mjd = [], _mjd(night) + 0.87
    for kind, band, exposure in kinds:
        count[kind, band] = count.get((kind, band), 0) + 1
        label = kind if not band else f"{kind}-{band}"
        name = f"S{options.seed}-{label}-{day}-{count[kind, band]:02d}"
        plans.append(Plan(name, kind, night, mjd + exposure / 2 / 86400, exposure, filter=band))
        mjd += (exposure + 12) / 86400
    return plans


def _lights(
    options: SurveyOptions, night: str, season: str, count: int, *, cloudy: bool, satellite: bool
) -> list[Plan]:
    plans = []
    weather = options.rng("weather", night)
    seeing = options.seeing * float(np.clip(weather.lognormal(-0.02, 0.15), 0.75, 1.5))
    moon = float(weather.uniform(0.9, 1.8))
    # Templates are taken in good nights; that is what they are for.
    if season == "template":
        seeing, moon = options.seeing * float(weather.uniform(0.85, 0.95)), float(weather.uniform(0.8, 1.1))
    day = night.replace("-", "")
    visit = (options.exposure + 20) / 86400
    # Rounds over all fields and filters, at least 25 minutes apart, so that what moves is seen to move.
    length = max(options.fields * len(options.filters) * visit, 25 / 1440)
    start = _transit(options, night) - count * length / 2
    for turn in range(count):
        for f in range(options.fields):
            for b, band in enumerate(options.filters):
                mjd = start + turn * length + (f * len(options.filters) + b) * visit
                name = f"S{options.seed}-{field_name(f)}-{day}-{band}-{turn + 1:02d}"
                rng = options.rng("exposure", name)
                airmass = _airmass(mjd, field_centre(f))
                cloud = float(rng.uniform(0.3, 0.75)) if cloudy else 1.0
                dark_sky = 10 ** (0.4 * (ZERO_POINTS[band] - DARK_SKY[band])) * options.pixel_scale**2
                # Clouds light up by half of what they take, moonlit or not.
                sky = dark_sky * options.exposure * moon * airmass**0.5 * (1 + 0.5 * (1 - cloud))
                blue = (WAVELENGTHS["r"] / WAVELENGTHS[band]) ** 0.2  # Kolmogorov: seeing grows to the blue
                plans.append(
                    Plan(
                        exposure_id=name,
                        kind="light",
                        night=night,
                        mjd=mjd,
                        exposure=options.exposure,
                        field=field_name(f),
                        filter=band,
                        season=season,
                        dither=(float(rng.uniform(-25, 25)), float(rng.uniform(-25, 25))),
                        rotation=math.radians(float(rng.normal(0, 0.15))),
                        pointing_error=(
                            float(rng.normal(0, 2.5)),
                            float(rng.normal(0, 2.5)),
                            math.radians(float(rng.normal(0, 0.03))),
                        ),
                        seeing=max(seeing * blue * airmass**0.6 * float(rng.lognormal(0, 0.04)), 1.9),
                        transparency=cloud * 10 ** (-0.4 * EXTINCTION[band] * (airmass - 1)),
                        airmass=airmass,
                        sky=sky * float(rng.normal(1, 0.03)),
                        satellite=satellite
                        and f == 0
                        and b == len(options.filters) - 1
                        and turn == min(1, count - 1),
                    )
                )
    return plans


def _transit(options: SurveyOptions, night: str) -> float:
    """Return the MJD in the dark hours of a night that is nearest to the culmination of the fields' middle."""
    ra = np.mean([field_centre(i)[0] for i in range(options.fields)])
    midnight = _mjd(night) + 1 - SITE_LONGITUDE / 360
    sidereal = 280.46062 + 360.98564737 * (midnight - 51544.5) + SITE_LONGITUDE
    hour = (sidereal - ra + 180) % 360 - 180
    # Four hours to either side of midnight are dark in every season at this latitude.
    return midnight + float(np.clip(-hour / 360.98564737, -4 / 24, 4 / 24))


def _airmass(mjd: float, centre: tuple[float, float]) -> float:
    sidereal = 280.46062 + 360.98564737 * (mjd - 51544.5) + SITE_LONGITUDE
    hour, dec, lat = (math.radians(a) for a in (sidereal - centre[0], centre[1], SITE_LATITUDE))
    altitude = math.sin(lat) * math.sin(dec) + math.cos(lat) * math.cos(dec) * math.cos(hour)
    # A survey of many fields may reach low ones; it never looks lower than 20 degrees.
    return 1 / max(altitude, math.sin(math.radians(20)))
