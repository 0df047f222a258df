"""Several exposures of one piece of sky, over nights and in two filters, against one reference a filter.

What `pairs` makes of one pair, made of many that share what the sky and the instrument share: stars and galaxies, the
reference with its noise, the same changing objects as bright as their light curve says, stars that always subtract
badly. A supernova is there on all nights after its explosion, an asteroid has moved on in the next exposure, a cosmic
ray or a satellite is there once. Where the telescope comes back to the same pixels, bad pixels, ghosts and edges are at
the same places too; where it is dithered, elsewhere each time.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.simulation import changes, spoil
from astrid_pipeline.simulation.pair_options import PairOptions, random_options, spoiled_options
from astrid_pipeline.simulation.pairs import Builder, SimulatedPair, Warp
from astrid_pipeline.simulation.psf import SkyPSF
from astrid_pipeline.simulation.sky import render
from astrid_pipeline.simulation.transients import periodic_magnitude, supernova_flux, wandering_magnitude
from astrid_pipeline.simulation.truth import table

Floats = npt.NDArray[np.float64]

#: The filters: most exposures are in the first.
FILTERS = ("r", "g")
#: Nights of a series, uniform.
NIGHTS = (1, 5)
#: Exposures of a night in the first filter, by probability; and how often there is one in the second.
REPEATS, OTHER = ((1, 0.5), (2, 0.35), (3, 0.15)), 0.45
#: Minutes from one exposure of a night to the next.
MINUTES = (5.0, 40.0)
#: Days by which the reference is older than the first night.
AGE = (20.0, 200.0)
#: Trails, px in an exposure: most asteroids of the main belt move by half a pixel in a minute, and are gone from
#: the next exposure all the same.
TRAILS = (0.4, 25.0)
#: Length of an exposure, s (`pairs`).
_SECONDS = 60.0
#: Share of the bad subtractions that are the star's (its colour, its brightness), hence there in all exposures.
_LASTING = 0.6
#: Share of series whose telescope is dithered between exposures.
_DITHERED = 0.5
#: Artefacts of the detector and the optics: they stay where they are on the pixels.
_OF_PIXELS = ("hot_pixels", "bad_columns", "ghosts", "edges")


@dataclass(frozen=True, eq=False)
class SeriesExposure:
    """One exposure of a series, as a pair with its filter's reference, on the grid of all exposures.

    Attributes
    ----------
    pair:
        Frames and truth of this exposure.
    night:
        Number of the night, 0 being the first.
    mjd, filter:
        Its own.
    """

    pair: SimulatedPair
    night: int
    mjd: float
    filter: str


def simulate_series(
    rng: np.random.Generator,
    shape: tuple[int, int] = (320, 320),
    *,
    rate: float = 20.0,
    spoiled: bool = False,
) -> list[SeriesExposure]:
    """Make up a series of exposures in order of time.

    Parameters
    ----------
    rate:
        Changing objects a megapixel: 6 in 10 supernovae, 2 in 10 variables; 2 in 10 asteroids a night.
    spoiled:
        Full of artefacts that no mask covers (`spoiled_options`).
    """
    plan = _schedule(rng)
    drawn = (spoiled_options if spoiled else random_options)(rng)
    nights = 1 + int(plan["night"].max())
    shares = {"transients": 0.6 * rate, "variables": 0.2 * rate, "movers": 0.2 * rate * nights}
    base = PairOptions(**(drawn | shares | {"snr": (3.0, 50.0), "trail_length": TRAILS}))
    return _Series(rng, shape, base, plan).expose()


def _schedule(rng: np.random.Generator) -> pd.DataFrame:
    """Return night, mjd, filter of each exposure, in order of time."""
    count = int(rng.integers(NIGHTS[0], NIGHTS[1] + 1))
    gaps = np.maximum(1, np.round(rng.exponential(rng.uniform(1, 6), count)))
    gaps[0] = 0
    numbers, shares = zip(*REPEATS, strict=True)
    rows = []
    for night, start in enumerate(61_000.2 + np.cumsum(gaps) + rng.uniform(0, 0.1, count)):
        names = [FILTERS[0]] * int(rng.choice(numbers, p=shares))
        names += [FILTERS[1]] if rng.random() < OTHER else []
        minutes = np.cumsum(rng.uniform(*MINUTES, len(names)))
        rows += [
            (night, start + m / 1440, name) for m, name in zip(minutes, rng.permutation(names), strict=True)
        ]
    return pd.DataFrame(rows, columns=["night", "mjd", "filter"])


class _Exposure(Builder):
    """The science frame of one exposure; its reference is the filter's."""

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int],
        options: PairOptions,
        reference_psf: SkyPSF,
    ) -> None:
        super().__init__(rng, shape, options)
        self.reference_psf = reference_psf
        self.warp = Warp(rng, shape, options.shift, options.distortion)

    def expected(self, sources: list[pd.DataFrame]) -> npt.NDArray[np.float32]:
        """Return the electrons to be expected of what does not change, sky and all."""
        image = self._draw(self.science_psf, [self.warp.table(s) for s in sources], self.scale)
        image += self._sky(self.o.gradient)
        return image

    def scene(self, science: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> changes.Scene:
        """Return what decides how bright a change of a given S/N is."""
        return self._scene(science, reference)

    def finish(
        self,
        science: npt.NDArray[np.float32],
        spoiled: spoil.Spoiled,
        reference: Frame,
        changed: pd.DataFrame,
        about: dict[str, Any],
    ) -> SimulatedPair:
        """Expose, and measure the truth against both frames' noise."""
        frame = self._expose(science, spoiled, 1)
        frame = frame.replace(meta=about)
        psf, psf_reference = self.science_psf.model(), self.reference_psf.model()
        rows: list[dict[str, object]] = [*changed.to_dict("records"), *spoiled.rows]  # type: ignore[list-item]
        truth = self._measure(table(rows), frame, reference, psf, psf_reference)
        frames = []
        for one, own in ((frame, psf), (reference, psf_reference)):
            gain, read = one.meta["gain"], one.meta["read_noise"]
            variance = np.maximum(one.data, 0) / gain + np.float32((read / gain) ** 2)
            frames.append(one.replace(variance=variance, psf=own if self.o.psf == "true" else None))
        return SimulatedPair(frames[0], frames[1], truth, psf, psf_reference, spoiled.artefacts, self.o)

    def count(self, rng: np.random.Generator) -> Any:
        """Return the function that says how many of something there are, its chance taken from `rng`."""
        return lambda per_megapixel: int(per_megapixel * self.area + rng.random())

    def reference_frame(self, expected: npt.NDArray[np.float32], name: str) -> Frame:
        """Return the reference exposed, its variance the expected one."""
        return self._expose(expected, None, self.o.reference_depth).replace(meta={"filter": name})


class _Series:
    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, int], base: PairOptions, plan: pd.DataFrame
    ) -> None:
        self.rng, self.shape, self.base, self.plan = rng, shape, base, plan
        self.template_mjd = float(plan["mjd"].iloc[0]) - rng.uniform(*AGE)
        self.lasting_seed = int(rng.integers(2**62))
        self.dithered = bool(rng.random() < _DITHERED)
        # Each filter has its own reference, transparency and sky; each star and galaxy its own colour.
        self.filters = {name: self._of_filter(name) for name in FILTERS}

    def _of_filter(self, name: str) -> PairOptions:
        rng, o = self.rng, self.base
        if name == FILTERS[0]:
            return dataclasses.replace(o, clouds=0.0)
        return dataclasses.replace(
            o,
            clouds=0.0,
            flux_ratio=o.flux_ratio * float(rng.uniform(0.8, 1.25)),
            reference_fwhm=float(np.clip(o.reference_fwhm * rng.lognormal(0.03, 0.1), 1.8, 4.5)),
            reference_depth=int(rng.integers(3, 21)),
            sky=o.sky * float(rng.uniform(0.4, 1.0)),
        )

    def _of_exposure(self, name: str) -> PairOptions:
        """Draw an exposure's own seeing, sky, clouds and registration."""
        rng, o = self.rng, self.filters[name]
        angle, shift = rng.uniform(0, 2 * np.pi), abs(rng.normal(0, 0.08))
        return dataclasses.replace(
            o,
            science_fwhm=float(np.clip(o.science_fwhm * rng.lognormal(0, 0.12), 1.9, 4.5)),
            clouds=float(rng.uniform(0.1, 0.6)) if rng.random() < 0.15 else 0.0,
            sky=o.sky * float(rng.lognormal(0, 0.2)),
            gradient=float(abs(rng.normal(0, 0.08))),
            shift=(float(shift * np.cos(angle)), float(shift * np.sin(angle))),
            distortion=float(abs(rng.normal(0, 0.05))),
            # A clear sky has now one and now none; a spoiled one all that it was given.
            trails=o.trails if o.trails > 1 else int(rng.random() < 0.15),
            psf="none" if rng.random() < 0.6 else "true",
        )

    def expose(self) -> list[SeriesExposure]:
        """Return all exposures."""
        rng = self.rng
        builders = []
        psfs: dict[str, SkyPSF] = {}
        for name in self.plan["filter"]:
            if name not in psfs:
                first = Builder(rng, self.shape, self.filters[name])
                psfs[name] = first.reference_psf
            builders.append(_Exposure(rng, self.shape, self._of_exposure(name), psfs[name]))
        stars, galaxies = builders[0]._catalogue()
        stars["colour"], galaxies["colour"] = (
            rng.normal(0, 0.5, len(stars)),
            rng.normal(0, 0.4, len(galaxies)),
        )
        then = changes.displace_some(rng, stars, builders[0]._count(self.base.dipoles), self.shape)
        expected = {}
        for name, psf in psfs.items():
            image = builders[0]._draw(psf, [_seen(then, name), _seen(galaxies, name)], 1.0)
            expected[name] = image + np.float32(self.filters[name].sky)
        k = int(np.flatnonzero(self.plan["filter"] == FILTERS[0])[0])
        one, r = builders[k], FILTERS[0]
        scene = one.scene(one.expected([stars, galaxies]), expected[r])
        planted = changes.plant(scene, stars, galaxies, self.base, one._count)
        light, before, dx, dy = self._light(planted, one.scale)
        references = {}
        for name, psf in psfs.items():
            colour = _colours(planted, name)
            faint = planted.assign(flux=before * colour, dx=0.0, dy=0.0)
            render(expected[name], faint[faint["flux"] != 0], psf)
            owner = next(b for b, f in zip(builders, self.plan["filter"], strict=True) if f == name)
            references[name] = owner.reference_frame(expected[name], name)
        out = []
        times: list[dict[Any, Any]] = self.plan.to_dict("records")
        for e, (builder, row) in enumerate(zip(builders, times, strict=True)):
            name, mjd, night = str(row["filter"]), float(row["mjd"]), int(row["night"])
            colour = _colours(planted, name)
            now = builder.warp.table(
                planted.assign(x=planted["x"] + dx[:, e], y=planted["y"] + dy[:, e])
            ).assign(flux=light[:, e] * colour * builder.scale)
            image = builder.expected([_seen(stars, name), _seen(galaxies, name)])
            inside = scene.inside(now["x"], now["y"], border=0)
            shining = now[(now["flux"] != 0) & inside]
            render(image, shining, builder.science_psf)
            # What is behind the reference's light counts as changed too, though it is nowhere now.
            change = now["flux"] - before * colour * builder.scale
            changed = now.assign(flux=change)[(change != 0) & inside]
            changed = changed.drop(columns=["flux_science", "flux_reference", "dx", "dy", "colour"])
            spoiled = self._spoil(builder, image, _seen(then, name), _seen(stars, name))
            about = {
                "exposure_id": f"{name}{e:02d}",
                "mjd": mjd,
                "filter": name,
                "night": f"night {night}",
            }
            pair = builder.finish(image, spoiled, references[name], changed, about)
            out.append(SeriesExposure(pair, night, mjd, name))
        return out

    def _spoil(
        self,
        builder: _Exposure,
        image: npt.NDArray[np.float32],
        then: pd.DataFrame,
        stars: pd.DataFrame,
    ) -> spoil.Spoiled:
        """Plant what lasts, the same in all exposures, and what is there once."""
        o = builder.o
        none: dict[str, Any] = dict.fromkeys((*_OF_PIXELS, "cosmic_rays"), 0)
        lasting = dataclasses.replace(o, **none, trails=0, bad_subtractions=_LASTING * o.bad_subtractions)
        passing = dataclasses.replace(o, bad_subtractions=(1 - _LASTING) * o.bad_subtractions)
        if not self.dithered:
            there: dict[str, Any] = {name: getattr(o, name) for name in _OF_PIXELS}
            gone: dict[str, Any] = dict.fromkeys(_OF_PIXELS, 0)
            lasting = dataclasses.replace(lasting, **there)
            passing = dataclasses.replace(passing, **gone)
        now, was = builder.warp.table(stars), builder.warp.table(then)
        same = np.random.default_rng(self.lasting_seed)
        first = spoil.spoil(same, image, lasting, builder.count(same), was, now, builder.science_psf)
        still = was.assign(moved=0.0)
        second = spoil.spoil(self.rng, image, passing, builder._count, still, now, builder.science_psf)
        second.mask |= first.mask
        second.artefacts |= first.artefacts
        second.rows += first.rows
        second.hits += first.hits
        second.columns += first.columns
        return second

    def _light(self, planted: pd.DataFrame, scale: float) -> tuple[Floats, Floats, Floats, Floats]:
        """Return the objects' flux in each exposure (objects, exposures) and in the reference (objects,), reference
        electrons in the first filter, and how far they have moved, px; sets the column `colour`."""
        rng, plan = self.rng, self.plan
        mjd, filters = plan["mjd"].to_numpy(float), plan["filter"].to_numpy(object)
        light, before = np.zeros((len(planted), len(plan))), np.zeros(len(planted))
        dx, dy = np.zeros_like(light), np.zeros_like(light)
        planted["colour"] = rng.normal(0, 0.3, len(planted))
        for i, row in enumerate(planted.to_dict("records")):
            flux, anchor = float(row["flux"]) / scale, int(rng.integers(len(plan)))
            if row["class"] == "fading":
                before[i] = -flux
            elif row["kind"] == "point":
                peak, stretch = mjd[anchor] - rng.uniform(-8, 25), rng.uniform(0.8, 1.25)
                each = np.array(
                    [supernova_flux(t - peak, f, stretch=stretch) for t, f in zip(mjd, filters, strict=True)]
                )
                light[i] = flux * each / each[anchor]
            elif row["kind"] == "variable":
                light[i], before[i] = self._varying(row, flux, scale, mjd, anchor)
            else:
                night = plan["night"].to_numpy() == plan["night"].iloc[anchor]
                light[i, night] = flux
                # Within a night it goes on at the rate of its trail; the next night it is elsewhere.
                rate = float(row["length"]) / _SECONDS * 86400
                away = (mjd - mjd[anchor]) * night * rate
                way = float(rng.choice([-1.0, 1.0]))
                dx[i], dy[i] = (way * away * f(float(row["angle"])) for f in (math.cos, math.sin))
        return light, before, dx, dy

    def _varying(
        self, row: dict[Any, Any], flux: float, scale: float, mjd: Floats, anchor: int
    ) -> tuple[Floats, float]:
        """Return a variable's light beside its star's own, in the exposures and in the reference: as different in
        the exposure `anchor` as was drawn, and as its curve says in the others."""
        rng, days = self.rng, np.r_[mjd, self.template_mjd]
        grid = np.linspace(self.template_mjd, mjd[-1], 200)
        while True:
            if row["class"] == "agn":
                seed = int(rng.integers(2**31))
                curve, whole = (wandering_magnitude(t, 0.3, seed) for t in (days, grid))
            else:
                shape = str(rng.choice(["sine", "sawtooth", "eclipse"]))
                period, phase = math.exp(rng.uniform(math.log(0.15), math.log(60))), rng.random()
                curve, whole = (periodic_magnitude(t, shape, period, 0.4, phase) for t in (days, grid))
            curve, whole = 10 ** (-0.4 * curve), 10 ** (-0.4 * whole)
            step = curve[anchor] - curve[-1]
            # An exposure in which it stands as in the reference cannot have the change that was drawn.
            if abs(step) > 0.3 * whole.std():
                break
        star = float(row["star_flux"]) / scale
        extra = np.maximum(flux / step * (curve - curve.mean()), -0.9 * star)
        own = star if row["class"] == "agn" else 0.0
        return extra[:-1] + own, float(extra[-1]) + own


def _seen(sources: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return sources with their flux in a filter."""
    return sources.assign(flux=sources["flux"] * _colours(sources, name))


def _colours(sources: pd.DataFrame, name: str) -> Any:
    return 1.0 if name == FILTERS[0] else 10 ** (0.4 * sources["colour"].to_numpy(float))
