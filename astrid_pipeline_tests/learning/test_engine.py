"""The compiled network against torch, its slow obvious twin."""

from __future__ import annotations

import ctypes
import gc
import signal
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from astrid_pipeline.learning import engine
from astrid_pipeline.learning.network import half_precision, predict, prepare_for_inference
from astrid_pipeline.learning.unet import build_network

pytestmark = pytest.mark.skipif(not engine.available(), reason="OpenVINO is not installed on this processor")


def _network(kind: str) -> nn.Module:
    torch.manual_seed(3)
    return prepare_for_inference(build_network(kind, widths=[8, 12, 16, 24, 32]).eval())


@pytest.mark.parametrize("kind", ["unet", "unetpp"])
@pytest.mark.parametrize("shape", [(64, 64), (16, 208)])
def test_the_same_answer_as_torch_in_float32(kind: str, shape: tuple[int, int]) -> None:
    network = _network(kind)
    planes = np.random.default_rng(1).normal(0, 1, (2, 4, *shape)).astype(np.float32)
    with torch.inference_mode():
        expected = torch.sigmoid(network(torch.from_numpy(planes))).numpy()
    assert np.abs(engine.engine(network, bf16=False)(planes) - expected).max() < 1e-4


@pytest.mark.skipif(not half_precision(torch.device("cpu")), reason="this processor has no bfloat16")
def test_bfloat16_is_as_near_to_float32_as_torch_s() -> None:
    network = _network("unet")
    planes = np.random.default_rng(1).normal(0, 1, (1, 4, 96, 96)).astype(np.float32)
    with torch.inference_mode():
        expected = torch.sigmoid(network(torch.from_numpy(planes))).numpy()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = torch.sigmoid(network(torch.from_numpy(planes)).float()).numpy()
    compiled = engine.engine(network, bf16=True)(planes)
    assert np.abs(compiled - expected).mean() < 2 * np.abs(rounded - expected).mean()


def test_whole_frames_go_through_it_and_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _network("unet")
    planes = np.random.default_rng(2).normal(0, 1, (4, 100, 180)).astype(np.float32)
    whole = predict(network, planes, device="cpu")
    tiled = predict(network, planes, device="cpu", core=64, margin=64)
    assert np.abs(whole - tiled).max() < 0.02
    made = engine._ENGINES[network]
    assert len(made) == 1
    predict(network, planes, device="cpu")
    assert engine._ENGINES[network] is made
    monkeypatch.setattr(engine, "available", lambda: False)
    assert np.abs(predict(network, planes, device="cpu") - whole).max() < 0.02


def _signal_stack() -> tuple[int | None, int]:
    """Return address and size of the stack on which this thread handles signals."""

    class Stack(ctypes.Structure):
        _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    now = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now)) == 0
    return now.address, now.size


def test_the_stack_for_signals_outlives_the_networks() -> None:
    """What OpenVINO's plugin lends the thread stays until the process ends: without it, a signal would end it."""
    engine.engine(_network("unet"), bf16=False)
    lent = _signal_stack()
    core = weakref.ref(engine._core())
    for _ in range(3):
        engine.engine(_network("unet"), bf16=False)(np.zeros((1, 4, 64, 64), np.float32))
        gc.collect()
    assert _signal_stack() == lent
    assert core() is engine._core()
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == [signal.SIGUSR1]


def test_threads_may_ask_at_once() -> None:
    run = engine.engine(_network("unet"), bf16=False)
    planes = [np.random.default_rng(k).normal(0, 1, (1, 4, 64, 64)).astype(np.float32) for k in range(6)]
    expected = [run(each) for each in planes]
    with ThreadPoolExecutor(6) as pool:
        for answer, wanted in zip(pool.map(run, planes * 3), expected * 3, strict=True):
            np.testing.assert_allclose(answer, wanted, atol=1e-6)


def test_a_network_that_learns_is_never_answered_from_what_it_was() -> None:
    torch.manual_seed(3)
    network = build_network("unet", widths=[8, 12, 16, 24, 32]).eval()
    planes = np.random.default_rng(2).normal(0, 1, (4, 64, 64)).astype(np.float32)
    before = predict(network, planes, device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    assert np.abs(predict(network, planes, device="cpu") - before).max() > 1e-3
    assert network not in engine._ENGINES
