"""`python -m astrid_pipeline.services.health URL`: code 0 if the page answers 200, for healthchecks."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit, urlunsplit


def answers(url: str, timeout: float = 10.0) -> bool:
    """Tell whether a GET of `url` gives 200 within `timeout` seconds."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def bare(url: str) -> str:
    """Return a web address without user and password, for people to see."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1], 5.0) else 1)
