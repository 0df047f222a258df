"""Model files: safetensors with a header that says what they are, loaded without running any code.

A file is refused, by `ModelError`, when it is absent, cut short, altered (its digest does not match), of another
version, or made for other channels or classes. Nothing takes its place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning.channels import CHANNELS

if TYPE_CHECKING:
    from torch import nn

FORMAT = "astrid-model"
VERSION = "1"

#: The weights that come with AstrID; `MODEL_CARD.md` beside them says what they were trained on.
PACKAGED = Path(__file__).parent / "models" / "unet-v1.safetensors"

Tensors = dict[str, npt.NDArray[Any]]


def canonical(value: Any) -> str:
    """Return JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def digest(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 of names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def save(path: Path, kind: str, tensors: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> str:
    """Write a model file, whole or not at all, and return its digest.

    Parameters
    ----------
    kind:
        What is in it: network, real_bogus, classical, ensemble or detector.
    facts:
        What the header says besides; plain values.
    """
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    mark = digest(arrays)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "channels": canonical(list(CHANNELS)),
        "digest": mark,
        "facts": canonical(dict(facts)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_bytes(to_bytes(arrays, metadata=header))
    temporary.replace(path)
    return mark


def load(path: Path, kind: str) -> tuple[Tensors, dict[str, Any], str]:
    """Return the tensors, the facts and the digest of a model file.

    Raises
    ------
    ModelError
        As the module says.
    """
    from safetensors import SafetensorError, safe_open

    remedy = "fetch or train the model again"
    if not path.is_file():
        raise ModelError("there is no such model file", where=path, remedy=remedy)
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        facts = json.loads(header.get("facts", "{}"))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ModelError(f"the model file is damaged: {error}", where=path, remedy=remedy) from error
    if header.get("format") != FORMAT:
        raise ModelError("this is no model of AstrID", where=path, remedy=remedy)
    if header.get("version") != VERSION:
        found = header.get("version")
        raise ModelError(
            f"the model file has version {found}, this AstrID reads {VERSION}", where=path, remedy=remedy
        )
    if header.get("kind") != kind:
        raise ModelError(
            f"the file holds a {header.get('kind')}, not a {kind}", where=path, remedy="name another file"
        )
    if header.get("channels") != canonical(list(CHANNELS)):
        was = header.get("channels")
        raise ModelError(f"the model was made for channels {was}", where=path, remedy="train it again")
    if header.get("digest") != digest(tensors):
        raise ModelError("the model's values are not those that were written", where=path, remedy=remedy)
    return tensors, facts, str(header["digest"])


def network_tensors(network: nn.Module, prefix: str = "", *, half: bool = False) -> Tensors:
    """Return a network's state as arrays; with `half`, floats become float16 (counters are left out)."""
    out: Tensors = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue  # only used while training with momentum None
        array = value.detach().cpu().contiguous().numpy()
        out[f"{prefix}{name}"] = array.astype(np.float16) if half else array
    return out


def network_from(
    tensors: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any], path: Path, prefix: str = ""
) -> nn.Module:
    """Return the network whose state is in `tensors` under `prefix`, in eval mode, float32.

    Raises
    ------
    ModelError
        If the tensors do not fit the network that the facts describe.
    """
    import torch

    from astrid_pipeline.learning.unet import CLASSES, build_network

    try:
        if list(facts["classes"]) != list(CLASSES):
            raise ModelError(
                f"the model knows the classes {facts['classes']}", where=path, remedy="train it again"
            )
        network = build_network(str(facts["network"]), **facts["options"])
        state = {
            name[len(prefix) :]: torch.from_numpy(np.array(value, dtype=np.float32))
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        missing, unknown = network.load_state_dict(state, strict=False)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        raise ModelError(
            f"the weights do not fit the network: {text}", where=path, remedy="train it again"
        ) from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        what = f"{len(missing)} tensors missing, {len(unknown)} unknown"
        raise ModelError(f"the weights do not fit the network: {what}", where=path, remedy="train it again")
    return network.eval()


def network_facts(network: nn.Module) -> dict[str, Any]:
    """Return what a header must say so that `network_from` can build the network."""
    from astrid_pipeline.learning.unet import CLASSES

    return {"network": network.kind, "options": network.options, "classes": list(CLASSES)}


def save_network(path: Path, network: nn.Module, facts: Mapping[str, Any]) -> str:
    """Write a network alone, in float32, and return its digest."""
    return save(path, "network", network_tensors(network), {**network_facts(network), **facts})


def load_network(path: Path) -> nn.Module:
    """Return the network written by `save_network`, in eval mode.

    Raises
    ------
    ModelError
        If it cannot be used.
    """
    tensors, facts, _ = load(path, "network")
    return network_from(tensors, facts, path)
