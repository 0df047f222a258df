"""Image differencing: what changed between two frames on one grid, and how significant it is.

A method is one file of this package with a function `difference(pair, device) -> Difference`, named in `METHODS`.
"""

from __future__ import annotations

import dataclasses
import time
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from astrid_pipeline.errors import ConfigError
from astrid_pipeline.imaging.frame import Difference, Frame

if TYPE_CHECKING:
    import torch

#: Methods by name, and the module of this package that holds each.
METHODS = MappingProxyType({"zogy": "zogy", "classic": "classic"})


def subtract(
    science: Frame,
    reference: Frame,
    method: str = "zogy",
    device: str | torch.device | None = None,
    *,
    find_artefacts: bool = True,
) -> Difference:
    """Subtract the reference from the science frame.

    Parameters
    ----------
    science, reference:
        Frames on one pixel grid (see `align`). What they lack of sky subtraction, variance and PSF is measured from
        them; sky offset, flux ratio, the shift that is left and PSF differences are solved from the frames.
    method:
        ``"zogy"``: proper image subtraction (Zackay, Ofek & Gal-Yam 2016); ``"classic"``: the reference convolved with
        a fitted kernel (after Alard & Lupton 1998).
    device:
        ``"cpu"``, ``"cuda"``, or None for what is there.
    find_artefacts:
        Whether to mask cosmic rays, bad columns and trails that the frames' masks lack. Without, they stay in the
        difference: for a detector that has to learn them, or frames whose masks are known to be whole.

    Returns
    -------
    Difference
        Units of the science frame; `score` has unit variance where nothing changed.

    Raises
    ------
    SubtractionError
        If the grids differ, or too little of the frames is usable, or they have nothing in common.
    PSFError
        If a PSF had to be measured and could not be.
    ConfigError
        If the method or the device is not known.
    """
    from astrid_pipeline.imaging.subtract.arrays import open_device
    from astrid_pipeline.imaging.subtract.inputs import make_pair

    if method not in METHODS:
        raise ConfigError(
            f"unknown method {method!r}",
            where="subtract",
            remedy=f"use one of {', '.join(sorted(METHODS))}",
        )
    started = time.perf_counter()
    chosen = open_device(device)
    run: Any = import_module(f"{__name__}.{METHODS[method]}").difference
    result: Difference = run(
        dataclasses.replace(make_pair(science, reference), search=find_artefacts), chosen
    )
    return result.replace(
        meta={
            "method": method,
            "device": chosen.type,
            "reference_id": reference.meta.get("exposure_id"),
            "seconds": time.perf_counter() - started,
        }
    )
