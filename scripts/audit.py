"""`make audit`: asks whether the pinned packages have known vulnerabilities, and says which it could not ask for.

pip-audit itself ends with "No known vulnerabilities found" where its service knows none of the packages, as behind a
mirror that holds files only. Exit codes: 0 every package was looked up and is clean; 1 there are vulnerabilities;
2 not everything could be looked up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def verdict(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Return the exit code and the lines to print for a report of pip-audit (its JSON).

    A report without a single package that was looked up is one of a service that was not reached.
    """
    packages = report.get("dependencies", [])
    skipped = [entry for entry in packages if "skip_reason" in entry]
    looked_up = len(packages) - len(skipped)
    lines, found = [], 0
    for entry in packages:
        for hole in entry.get("vulns", []):
            found += 1
            mended = ", ".join(hole.get("fix_versions", [])) or "no version yet"
            lines.append(f"{entry['name']} {entry['version']}: {hole['id']}, mended in {mended}")
    if skipped and not looked_up:
        return 2, [
            f"NOT AUDITED: the service knows none of the {len(packages)} packages (a mirror?); nothing was checked"
        ]
    lines += [f"not audited: {entry['name']}: {entry['skip_reason']}" for entry in skipped]
    lines.append(f"{looked_up} of {len(packages)} packages looked up, {found} known vulnerabilities")
    if not packages:
        return 2, ["NOT AUDITED: there was no package to look up"]
    return (1 if found else 2 if skipped else 0), lines


def audit(requirements: Path, service: str) -> tuple[int, list[str]]:
    """Run pip-audit over pinned requirements and return `verdict`; 2 where it could not ask.

    Parameters
    ----------
    service:
        `pypi` or `osv`.
    """
    command = [sys.executable, "-m", "pip_audit", "-r", str(requirements), "-s", service, "-f", "json"]
    command += ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return 2, [f"NOT AUDITED: the service {service} did not answer: {last[:300]}"]
    return verdict(report)


if __name__ == "__main__":
    code, told = audit(ROOT / "constraints.txt", os.environ.get("AUDIT_SERVICE", "pypi"))
    print("\n".join(told))
    sys.exit(code)
