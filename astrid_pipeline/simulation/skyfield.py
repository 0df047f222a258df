"""One field of a simulated survey: its stars and galaxies, what changes among them, and how they look at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from astropy.wcs import WCS

from astrid_pipeline.simulation import transients
from astrid_pipeline.simulation.schedule import Plan, SurveyOptions, field_name
from astrid_pipeline.simulation.sky import draw_galaxies, draw_magnitudes
from astrid_pipeline.simulation.transients import colour_magnitude

#: The sky is filled so far beyond the frame, px: dithers of 25 px, a turn, and the reach of bright stars.
MARGIN = 100

#: Stars to 20th magnitude in r a square degree, field by field in turn: galactic latitudes of 25° and 45°.
STAR_DENSITY = (9000.0, 5500.0)

#: Galaxies to 20th magnitude in r a square degree.
GALAXY_DENSITY = 3000.0

#: Brightest and faintest r magnitudes that are made.
BRIGHT, FAINT = 9.0, 21.5

#: Every field has stars this bright, which bleed over a hundred pixels and some ten: a square degree has a few.
BRIGHTEST = (8.0, 9.3)

_COLUMNS = ("x", "y", "mag", "re", "index", "axis_ratio", "angle", "rate_x", "rate_y")


class SkyField:
    """The content of one field. Positions are pixels of the field's plane (see `SimulatedSurvey.plane_wcs`).

    Attributes
    ----------
    stars, galaxies:
        What does not change.
    supernovae, variables, agn:
        What changes over the nights.
    asteroids:
        By night: those of that night alone; and, in the first field, one slow object of the outer solar system.
    """

    def __init__(self, options: SurveyOptions, index: int, plans: Sequence[Plan]) -> None:
        self.options, self.index, self.name = options, index, field_name(index)
        rng = options.rng("field", index)
        self.area = ((options.size + 2 * MARGIN) * options.pixel_scale / 3600) ** 2
        self.stars = self._draw_stars(rng)
        self.galaxies = self._draw_galaxies(rng)
        self.template_mjds = [(p.filter, p.mjd) for p in plans if p.season == "template"]
        science = [p.mjd for p in plans if p.season == "science"]
        self.supernovae = self._draw_supernovae(options.rng("supernovae", index), science)
        self.variables = transients.draw_variables(
            options.rng("variables", index), self._inside(self.stars), self._count(options.variables)
        )
        self.agn = self._draw_agn(options.rng("agn", index))
        nights = sorted({p.night for p in plans})
        self._middles = {
            night: float(np.mean([p.mjd for p in plans if p.night == night])) for night in nights
        }
        self.asteroids = {night: self._draw_asteroids(night) for night in self._middles}
        self._still: dict[str, pd.DataFrame] = {}
        self._template: dict[str, pd.Series] = {}
        self._slow = self._draw_slow(min(science) if science else 0.0)

    def _count(self, per_field: int) -> int:
        """Return how many of something a field of this size has; what is asked for at all occurs at least twice."""
        return max(round(per_field * self.options.area), min(per_field, 2))

    def _place(self, rng: np.random.Generator, table: pd.DataFrame) -> pd.DataFrame:
        low, high = -MARGIN, self.options.size + MARGIN
        return table.assign(x=rng.uniform(low, high, len(table)), y=rng.uniform(low, high, len(table)))

    def _inside(self, table: pd.DataFrame, border: float = 45.0) -> pd.DataFrame:
        """Return the rows that every dithered frame sees (index kept)."""
        low, high = border, self.options.size - 1 - border
        return table[table["x"].between(low, high) & table["y"].between(low, high)]

    def _draw_stars(self, rng: np.random.Generator) -> pd.DataFrame:
        slope = 0.2
        density = STAR_DENSITY[self.index % len(STAR_DENSITY)] * 10 ** (slope * (FAINT - 20))
        mag = draw_magnitudes(rng, int(rng.poisson(density * self.area)), BRIGHT, FAINT, slope)
        # Stars near the turn-off of the halo and disc, and red dwarfs, which grow in number with magnitude.
        red = rng.random(len(mag)) < np.clip((mag - 14) / 10, 0.1, 0.6)
        colour = np.where(red, rng.normal(1.35, 0.12, len(mag)), rng.normal(0.5, 0.15, len(mag)))
        stars = self._place(rng, pd.DataFrame({"mag_r": mag, "g_r": colour}))
        size = self.options.size
        for i, bright in enumerate(BRIGHTEST[: len(stars)]):
            stars.loc[i, ["mag_r", "x", "y"]] = (
                bright,
                rng.uniform(0.1, 0.9) * size,
                rng.uniform(0.2, 0.8) * size,
            )
        return stars

    def _draw_galaxies(self, rng: np.random.Generator) -> pd.DataFrame:
        density = GALAXY_DENSITY * 10 ** (0.4 * (FAINT - 20))
        n = int(rng.poisson(density * self.area))
        table = draw_galaxies(rng, n, 14.5, FAINT, pixel_scale=self.options.pixel_scale)
        colour = np.where(table["index"] > 2.5, rng.normal(0.9, 0.1, n), rng.normal(0.6, 0.15, n))
        return self._place(rng, table.rename(columns={"mag": "mag_r"}).assign(g_r=colour))

    def _draw_supernovae(self, rng: np.random.Generator, science: list[float]) -> pd.DataFrame:
        inside = self._inside(self.galaxies)
        hosts = inside[inside["mag_r"] < 20.5]
        if not len(hosts) or not science or not self.options.supernovae:
            return pd.DataFrame()
        table = transients.draw_supernovae(
            rng,
            hosts.assign(flux=10 ** (-0.4 * hosts["mag_r"])),
            self._count(self.options.supernovae),
            peaks=(min(science) - 8, max(science) + 8),
            template_mjd=float(np.mean([m for _, m in self.template_mjds])) if self.template_mjds else None,
            names=f"{self.name}-",
        )
        host_mag = np.where(table["host"] >= 0, hosts["mag_r"].to_numpy()[table["host"]], np.nan)
        return table.assign(host_mag_r=host_mag)

    def _draw_agn(self, rng: np.random.Generator) -> pd.DataFrame:
        hosts = self._inside(self.galaxies)
        hosts = hosts[hosts["mag_r"].between(15, 19.5)]
        chosen = hosts.iloc[rng.permutation(len(hosts))[: self._count(self.options.agn)]]
        n = len(chosen)
        return chosen[["x", "y", "re"]].assign(
            host_mag_r=chosen["mag_r"],
            mag_r=chosen["mag_r"] + rng.uniform(0.3, 1.5, n),
            g_r=rng.normal(0.2, 0.1, n),
            amplitude=rng.uniform(0.15, 0.4, n),
            walk=rng.integers(0, 2**31, n),
        )

    def _draw_asteroids(self, night: str) -> pd.DataFrame:
        n, size = self.options.asteroids, self.options.size
        if not n:
            return pd.DataFrame()
        rng = self.options.rng("asteroids", self.name, night)
        prefix = f"{self.name}-{night.replace('-', '')}-"
        return transients.draw_asteroids(rng, self._count(n), (size, size), prefix)

    def _draw_slow(self, first: float) -> pd.DataFrame:
        """One object beyond Neptune, in the first field: 2 px an hour, so that it stays in the frame for days."""
        if self.index or not self.options.asteroids:
            return pd.DataFrame()
        rng = self.options.rng("slow")
        size = self.options.size
        return pd.DataFrame(
            {
                "object_id": [f"{self.name}-slow"],
                "x": [rng.uniform(0.2, 0.4) * size],
                "y": [rng.uniform(0.4, 0.6) * size],
                "rate": [2.0 * size / 1024],
                "angle": [rng.uniform(-0.3, 0.3)],
                "mag_r": [18.2],
                "g_r": [0.6],
                "mjd": [first],
            }
        )

    def at(self, mjd: float, band: str) -> pd.DataFrame:
        """Return everything in the field at a time: x, y (plane, px), mag, re, index, axis_ratio, angle (0 or NaN for
        points), rate_x, rate_y (px an hour)."""
        moving = self.changing(mjd, band)
        shining = moving[np.isfinite(moving["mag"].astype(float))].reindex(columns=list(_COLUMNS))
        return pd.concat([self._fixed(band), shining.assign(re=0.0, angle=0.0)], ignore_index=True)

    def _fixed(self, band: str) -> pd.DataFrame:
        if band not in self._still:
            varies = self.stars.index.isin(self.variables["star"].tolist() if len(self.variables) else [])
            table = pd.concat([self.stars[~varies], self.galaxies], ignore_index=True)
            table = table.assign(
                mag=colour_magnitude(table["mag_r"], table["g_r"], band), rate_x=0.0, rate_y=0.0
            )
            self._still[band] = table.reindex(columns=list(_COLUMNS))
        return self._still[band]

    def changing(self, mjd: float, band: str) -> pd.DataFrame:
        """Return everything that changes, as it is at a time: object_id, kind, class, x, y, mag (infinite if there is
        no light), mean_mag (of variables), rate_x, rate_y, on_galaxy, host_mag, host_re, host_distance."""
        tables = [
            self._supernovae_at(mjd, band),
            self._variables_at(mjd, band),
            self._agn_at(mjd, band),
            self._asteroids_at(mjd, band),
        ]
        filled = [t for t in tables if len(t)]
        if not filled:
            return pd.DataFrame(columns=["object_id", "kind", "class", "x", "y", "mag", "rate_x", "rate_y"])
        table = pd.concat(filled, ignore_index=True)
        return table.assign(rate_x=table["rate_x"].fillna(0.0), rate_y=table["rate_y"].fillna(0.0))

    def _supernovae_at(self, mjd: float, band: str) -> pd.DataFrame:
        sn = self.supernovae
        if not len(sn):
            return sn
        peaks = colour_magnitude(sn["peak_mag"], sn["g_r"], band)
        phases = mjd - sn["peak_mjd"].to_numpy()
        light = np.array(
            [
                float(transients.supernova_flux(p, band, stretch=s))
                for p, s in zip(phases, sn["stretch"].to_numpy(), strict=True)
            ]
        )
        with np.errstate(divide="ignore"):
            mag = peaks - 2.5 * np.log10(light)
        hosted = (sn["host"] >= 0).to_numpy()
        host_mag = colour_magnitude(sn["host_mag_r"], 0.7, band)
        return sn[["object_id", "class", "x", "y", "host_re", "host_distance"]].assign(
            kind="point", mag=mag, on_galaxy=hosted, host_mag=host_mag, rate_x=0.0, rate_y=0.0
        )

    def _variables_at(self, mjd: float, band: str) -> pd.DataFrame:
        variables = self.variables
        if not len(variables):
            return variables
        stars = self.stars.loc[variables["star"]].reset_index(drop=True)
        mean = colour_magnitude(stars["mag_r"], stars["g_r"], band)
        # Pulsation and spots change the temperature: blue light varies more.
        factor = (transients.WAVELENGTHS["r"] / transients.WAVELENGTHS[band]) ** 0.85
        away = [
            float(transients.periodic_magnitude(mjd, shape, period, amplitude, phase))
            for shape, period, amplitude, phase in variables[
                ["shape", "period", "amplitude", "phase"]
            ].itertuples(index=False, name=None)
        ]
        return stars[["x", "y"]].assign(
            **{"class": "variable_star"},
            object_id=[f"{self.name}-var{i:02d}" for i in range(len(stars))],
            kind="variable",
            mag=mean + factor * np.array(away),
            mean_mag=mean,
            on_galaxy=False,
            rate_x=0.0,
            rate_y=0.0,
        )

    def _agn_at(self, mjd: float, band: str) -> pd.DataFrame:
        agn = self.agn.reset_index(drop=True)
        if not len(agn):
            return agn
        mean = colour_magnitude(agn["mag_r"], agn["g_r"], band)
        away = [
            float(transients.wandering_magnitude(mjd, amplitude, int(walk)))
            for amplitude, walk in zip(agn["amplitude"], agn["walk"], strict=True)
        ]
        return agn[["x", "y"]].assign(
            **{"class": "agn"},
            object_id=[f"{self.name}-agn{i:02d}" for i in range(len(agn))],
            kind="variable",
            mag=mean + np.array(away),
            mean_mag=mean,
            on_galaxy=True,
            host_mag=colour_magnitude(agn["host_mag_r"], 0.7, band),
            host_re=agn["re"],
            host_distance=0.0,
            rate_x=0.0,
            rate_y=0.0,
        )

    def _asteroids_at(self, mjd: float, band: str) -> pd.DataFrame:
        night = min(self._middles, key=lambda name: abs(self._middles[name] - mjd))
        found = self.asteroids[night]
        tables = [found.assign(mjd=self._middles[night])] if len(found) else []
        if len(self._slow):
            tables.append(self._slow)
        if not tables:
            return pd.DataFrame()
        table = pd.concat(tables, ignore_index=True)
        hours = 24 * (mjd - table["mjd"])
        rate_x, rate_y = table["rate"] * np.cos(table["angle"]), table["rate"] * np.sin(table["angle"])
        # Motion is given in arcsec an hour.
        scale = 1 / self.options.pixel_scale
        return table[["object_id"]].assign(
            **{"class": "asteroid"},
            kind="moving",
            x=table["x"] + rate_x * hours * scale,
            y=table["y"] + rate_y * hours * scale,
            mag=colour_magnitude(table["mag_r"], table["g_r"], band),
            rate_x=rate_x * scale,
            rate_y=rate_y * scale,
            on_galaxy=False,
        )

    def template_flux(self, band: str) -> pd.Series:
        """Return the mean flux (of a zero point of 0) of each changing object over the template's exposures in `band`.

        What moves is absent, since a clipped mean leaves it out; without a template a variable has its mean.
        """
        if band not in self._template:
            self._template[band] = self._template_flux(band)
        return self._template[band]

    def _template_flux(self, band: str) -> pd.Series:
        mjds = [mjd for name, mjd in self.template_mjds if name == band]
        if not mjds:
            table = self.changing(self._middles[min(self._middles)] if self._middles else 0.0, band)
            mean = table["mean_mag"] if "mean_mag" in table else pd.Series(np.nan, table.index)
            return pd.Series((10 ** (-0.4 * mean)).fillna(0.0).to_numpy(), index=table["object_id"].tolist())
        fluxes: list[npt.NDArray[np.float64]] = []
        for mjd in mjds:
            table = self.changing(mjd, band)
            table = table[table["kind"] != "moving"]
            fluxes.append(10 ** (-0.4 * table["mag"].to_numpy(float)))
        return pd.Series(np.mean(fluxes, axis=0), index=table["object_id"].tolist())

    def catalogue(self, plane: WCS) -> pd.DataFrame:
        """Return the stars to r = 21: ra, dec and mag_<filter>; those that vary with their mean."""
        stars = self.stars[self.stars["mag_r"] < 21].sort_values("mag_r", kind="stable")
        ra, dec = plane.all_pix2world(stars["x"], stars["y"], 0)
        bands = {
            f"mag_{band}": colour_magnitude(stars["mag_r"], stars["g_r"], band)
            for band in self.options.filters
        }
        table = pd.DataFrame({"ra": np.asarray(ra) % 360, "dec": dec, **bands})
        return table.reset_index(drop=True)

    @property
    def radius(self) -> float:
        """Degrees from the centre to the frame's corner, dithers included."""
        return math.hypot(1, 1) * (self.options.size / 2 + 30) * self.options.pixel_scale / 3600
