"""Code versions of assets: a digest of the source a product depends on.

Dagster marks a product as outdated when its asset's code version changes. A number kept by hand is
forgotten; a digest of the rooms that do the work is not.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


@cache
def code_version(*places: str) -> str:
    """Return 12 hexadecimal digits that change when a source file under `places` does.

    Parameters
    ----------
    places:
        Files or folders, relative to the package, such as `"imaging"` or `"night/calibration.py"`.
    """
    digest = hashlib.sha256()
    for place in sorted(places):
        root = PACKAGE / place
        files = (
            [root]
            if root.is_file()
            else sorted(p for p in root.rglob("*") if p.suffix in {".py", ".avsc", ".yaml"})
        )
        if not files:
            raise FileNotFoundError(f"no source under {place!r}")
        for path in files:
            digest.update(path.relative_to(PACKAGE).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
