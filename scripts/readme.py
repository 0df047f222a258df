"""Writes the configuration table of README.md from the settings, so that it cannot fall behind them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from astrid_pipeline.settings import settings_table

README = Path(__file__).parent.parent / "README.md"
PATTERN = re.compile(r"(<!-- settings:[^\n]*-->\n).*?(<!-- /settings -->)", re.DOTALL)


def main() -> int:
    """Write the table; with `--check`, only say whether it is up to date."""
    old = README.read_text(encoding="utf-8")
    new = PATTERN.sub(lambda found: f"{found[1]}{settings_table()}\n{found[2]}", old)
    if "--check" in sys.argv:
        if new != old:
            print("README.md: the configuration table is not up to date (make readme)", file=sys.stderr)
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
