"""The errors AstrID raises: each says what was wrong, where, and what to do about it.

Every error a user can cause, or a service can cause to a user, is an `AstridError`. Its text is one
line, so that a terminal, a log and the Dagster page can show it whole. `permanent` tells whether trying
again can help: a truncated file stays truncated, a server that did not answer may answer later.
"""

from __future__ import annotations

from pathlib import Path


class AstridError(Exception):
    """Base of all AstrID errors.

    Parameters
    ----------
    what:
        What was wrong, as a short clause ("the file ends after 12 of 90 MiB").
    where:
        The file, exposure, partition or service it was found in.
    remedy:
        What the reader can do about it, as an imperative.
    """

    exit_code = 1
    permanent = True

    def __init__(self, what: str, *, where: str | Path | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        super().__init__(what, self.where, remedy)

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        text = " ".join(text.split())
        return text if self.remedy is None else f"{text} ({self.remedy})"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default reduction, and errors cross process borders.
        return _rebuild, (type(self), self.what, self.where, self.remedy, self.__dict__)


def _rebuild(
    kind: type[AstridError], what: str, where: str | None, remedy: str | None, state: dict
) -> AstridError:
    error = kind.__new__(kind)
    AstridError.__init__(error, what, where=where, remedy=remedy)
    error.__dict__.update(state)
    return error


class InputError(AstridError):
    """Something a user handed over cannot be used as it is."""

    exit_code = 2


class ReadError(InputError):
    """A file cannot be read: absent, without permission, not FITS, truncated, damaged."""


class HeaderError(InputError):
    """A header lacks what is needed, or says something impossible (unknown BUNIT, zero exposure time)."""


class PixelError(InputError):
    """The pixels cannot be used: all NaN, constant, a cube, no image at all."""


class DuplicateExposureError(InputError):
    """The same exposure was handed over twice."""


class CalibrationError(InputError):
    """Master frames are missing, too old, or do not match the frame (binning, gain, temperature)."""


class RegistrationError(InputError):
    """Two frames could not be brought onto one grid: no overlap, too few common stars."""


class PSFError(InputError):
    """The point spread function could not be measured."""


class SubtractionError(InputError):
    """Two frames could not be subtracted (different grids, nothing left after masking)."""


class NoReferenceError(InputError):
    """No reference image can be had for a field, filter and time."""


class ModelError(AstridError):
    """A model is absent, damaged, or does not fit its inputs. Inference stops; nothing falls back."""


class ConfigError(AstridError):
    """A setting or a command is wrong."""

    exit_code = 2


class StoreError(AstridError):
    """The object store could not keep or return a product."""

    permanent = False


class DamagedError(StoreError):
    """An object in the store is not what was written: made again it is good, read again it is not."""

    permanent = True


class LostError(StoreError):
    """What an earlier step had put into the store is gone: a step that reads it cannot help, a new run does."""


class ServiceError(AstridError):
    """A service (database, tracking server, archive) did not answer or refused."""

    permanent = False


class MissingProductError(AstridError):
    """A product that should be in the store is not there: its upstream was not made, or was empty."""
