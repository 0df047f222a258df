"""Named mask bits. A mask is an int32 array; a pixel without any bit set is good.

Bits 0-11 describe the frame itself. In a difference image the science frame's bits stay where they are,
and the reference's stand `REFERENCE_SHIFT` bits higher, so that nobody has to guess whose saturated star
a flag means.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

#: How far a reference's bits are shifted up in the mask of a difference image.
REFERENCE_SHIFT = 12

MaskArray = npt.NDArray[np.int32]


class Mask(enum.IntFlag):
    """What is wrong with a pixel."""

    BAD_PIXEL = 1 << 0  # hot, dead or non-linear pixel, from the master frames
    BAD_COLUMN = 1 << 1  # a column that traps or leaks charge
    SATURATED = 1 << 2  # at or above the level where the detector stops being linear
    BLEED = 1 << 3  # charge spilled from a saturated star along the column
    COSMIC_RAY = 1 << 4
    TRAIL = 1 << 5  # a satellite or aeroplane
    EDGE = 1 << 6  # so near the border that filters and resampling do not have all their pixels
    NO_DATA = 1 << 7  # outside the other frame, NaN, or never exposed
    INTERPOLATED = 1 << 8  # the value was filled in from neighbours
    CROSSTALK = 1 << 9  # ghost or cross-talk
    SUSPECT = 1 << 10  # the owner of the data said so, without saying why


#: Bits that make a pixel unusable for measuring a star, the sky, or a change.
UNUSABLE = (
    Mask.BAD_PIXEL
    | Mask.BAD_COLUMN
    | Mask.SATURATED
    | Mask.BLEED
    | Mask.COSMIC_RAY
    | Mask.TRAIL
    | Mask.NO_DATA
)


def as_mask(mask: npt.ArrayLike | None, shape: tuple[int, int]) -> MaskArray:
    """Return `mask` as an int32 array of named bits.

    A boolean mask (True = bad) becomes `Mask.SUSPECT | Mask.BAD_PIXEL`, since nothing says what is wrong there;
    None becomes all good.

    Raises
    ------
    ValueError
        If the shape differs from `shape`.
    """
    if mask is None:
        return np.zeros(shape, np.int32)
    array = np.asarray(mask)
    if array.shape != shape:
        raise ValueError(f"mask has shape {array.shape}, the data have {shape}")
    if array.dtype == bool:
        return np.where(array, np.int32(Mask.BAD_PIXEL | Mask.SUSPECT), np.int32(0))
    return np.ascontiguousarray(array, dtype=np.int32)


def is_set(mask: MaskArray, bits: int = int(UNUSABLE), *, reference: bool = False) -> npt.NDArray[np.bool_]:
    """Return where any of `bits` is set; with `reference`, also where the reference's bits are."""
    wanted = int(bits)
    if reference:
        wanted |= wanted << REFERENCE_SHIFT
    return (mask & np.int32(wanted)) != 0


def names(value: int) -> list[str]:
    """Return the names of the bits in `value`, the reference's with the prefix ``REF_``."""
    own = [bit.name for bit in Mask if value & bit and bit.name]
    reference = [f"REF_{bit.name}" for bit in Mask if (value >> REFERENCE_SHIFT) & bit]
    return own + reference
