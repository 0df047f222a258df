"""`make lock`: writes constraints.txt and the locks with hashes, from pyproject.toml and the pins that there are.

    locks/run.txt    what AstrID needs
    locks/k8s.txt    what the extra `k8s` adds to it
    locks/test.txt   what the extra `test` adds to both (the extra holds all of `k8s`)

No package stands in two of them. They hold for every Python and system that pyproject.toml names (markers), and name
no index: hashes are those of PyPI's files, whoever serves them. A version stays as constraints.txt has it; to have
another, change its line, or take the line out for the newest, and run this again. torch is in constraints.txt alone,
since people install different builds of it, and what only torch's CUDA builds need is in neither.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = "constraints.txt"
#: The lock of each set of extras, smaller sets first.
LOCKS = {"locks/run.txt": (), "locks/k8s.txt": ("k8s",), "locks/test.txt": ("k8s", "test")}
#: What torch's own step installs, and what comes along with its CUDA builds only.
TORCH = re.compile(r"torch|triton|cuda-.*|nvidia-(?!ml-py).*")
HEADER = "# Written by `make lock` from pyproject.toml and constraints.txt; install it with pip's --require-hashes.\n"


def normal(name: str) -> str:
    """Return a package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Return each line `name==version` or `name==version ; marker` of a file of pins, by name and marker."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", " ")):
            line = line.removesuffix("\\").strip()
            found[key(line)] = line
    return found


def key(line: str) -> str:
    """Return what tells one pin from another: the name, and the marker where there is one."""
    requirement, _, marker = line.partition(";")
    return normal(requirement.partition("==")[0].strip()) + (f" ; {marker.strip()}" if marker else "")


def entries(lock: str) -> dict[str, str]:
    """Return each package of a lock with its lines of hashes, less those of torch's own step."""
    blocks = re.findall(r"^[^\s#].*\n(?:[ ]+--hash.*\n)*", lock, re.MULTILINE)
    named = {key(block.splitlines()[0].removesuffix("\\").strip()): block for block in blocks}
    return {name: block for name, block in named.items() if not TORCH.fullmatch(name.partition(" ;")[0])}


def resolve(extras: tuple[str, ...], constraints: Path) -> str:
    """Return uv's lock of AstrID with these extras and of what builds it, for all Pythons and systems of pyproject."""
    built_with = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    command = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "pyproject.toml", "-"]
    command += [word for extra in extras for word in ("--extra", extra)]
    command += ["--constraint", str(constraints), "--universal"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(
        command, cwd=ROOT, input="\n".join(built_with), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"error: uv could not resolve pyproject.toml with {CONSTRAINTS}:\n{done.stderr.strip()}")
    return done.stdout


def lock() -> None:
    """Write constraints.txt and the locks."""
    old = (ROOT / CONSTRAINTS).read_text()
    # Everything at once first: the sets must agree on versions of what is new.
    whole = resolve(("k8s", "test"), ROOT / CONSTRAINTS)
    every = pins(whole)
    kept = sorted(line for name, line in every.items() if name == "torch" or name in entries(whole))
    header = re.match(r"(?:#.*\n)*", old)
    new = (header.group() if header else "") + "".join(f"{line}\n" for line in kept)
    blocks = entries(whole)
    locks = {}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("".join(f"{line}\n" for line in every.values()))
        constraints.flush()
        for path, extras in LOCKS.items():
            # By name alone: of two extras that want a package, one may want it on fewer systems.
            names = {name.partition(" ;")[0] for name in entries(resolve(extras, Path(constraints.name)))}
            mine = sorted(name for name in blocks if name.partition(" ;")[0] in names)
            locks[path] = HEADER + "".join(blocks.pop(name) for name in mine)
    if blocks:
        sys.exit(f"error: in no lock: {', '.join(blocks)}")
    for path, text in {CONSTRAINTS: new, **locks}.items():
        (ROOT / path).write_text(text)
    before, after = set(pins(old).values()), set(pins(new).values())
    changes = [f"+ {line}" for line in sorted(after - before)] + [
        f"- {line}" for line in sorted(before - after)
    ]
    print("\n".join(changes) or "Nothing has changed.")


if __name__ == "__main__":
    lock()
