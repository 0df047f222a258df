"""A frozen network compiled for this processor: OpenVINO does three times as many pixels a second as torch.

The graph is handed over directly, without the converter that reports its use to OpenVINO's makers: nothing leaves the
machine. Where OpenVINO is not installed (it is on x86-64), torch computes the same answers, more slowly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from astrid_pipeline.learning.channels import CHANNELS

#: From (N, inputs, h, w) planes to (N, outputs, h, w) probabilities, float32 both.
Engine = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

#: Kept as long as their networks are: compiling takes as long as some five megapixels do.
_ENGINES: WeakKeyDictionary[nn.Module, dict[tuple[bool, int], Engine]] = WeakKeyDictionary()


@cache
def available() -> bool:
    """Return whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def engine(network: nn.Module, bf16: bool) -> Engine:
    """Return a network, made by `network.prepare_for_inference`, compiled for this processor.

    Parameters
    ----------
    bf16:
        Whether to compute in bfloat16, as `network.half_precision` says; else in float32.
    """
    kept = _ENGINES.setdefault(network, {})
    key = (bf16, torch.get_num_threads())
    if key not in kept:
        kept[key] = _compiled(network, *key)
    return kept[key]


@cache
def _core() -> Any:
    """Return OpenVINO's core, one for the life of the process.

    For processors with AMX its plugin gives the thread that loads it a larger stack for signals, and takes the memory
    back when the last core and model are gone, while the thread still points to it: the next signal that Python handles
    then ends the process (seen as a segmentation fault in `poll`, OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


class _Probabilities(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network(image))


def _compiled(network: nn.Module, bf16: bool, threads: int) -> Engine:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    inputs = len(CHANNELS)
    side = 4 * int(network.stride)  # type: ignore[arg-type]
    with torch.inference_mode():
        traced = torch.jit.trace(
            _Probabilities(network).eval(), torch.zeros(1, inputs, side, side), check_trace=False
        )
    frontend = FrontEndManager().load_by_framework("pytorch")
    # The graph refers to its decoder without owning it.
    decoder = TorchScriptPythonDecoder(traced)
    graph = frontend.load(decoder)
    model = frontend.convert(graph)
    model.inputs[0].get_node().set_partial_shape(openvino.PartialShape([-1, inputs, -1, -1]))
    model.validate_nodes_and_infer_types()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = _core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    # One question at a time: it uses all the threads it was given anyway.
    turn = threading.Lock()

    def run(planes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with turn:
            answer: npt.NDArray[np.float32] = request.infer([np.ascontiguousarray(planes, np.float32)])[
                compiled.output(0)
            ]
        return answer

    return run
