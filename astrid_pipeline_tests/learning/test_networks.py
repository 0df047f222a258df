from __future__ import annotations

import numpy as np
import pytest
import torch

from astrid_pipeline.learning.losses import heat_loss, mask_loss
from astrid_pipeline.learning.network import predict, prepare_for_inference, spans
from astrid_pipeline.learning.unet import CLASSES, UNet, build_network, count_parameters
from astrid_pipeline.learning.unetpp import UNetPlusPlus


@pytest.mark.parametrize("network", [UNet, UNetPlusPlus])
def test_about_2_1_million_parameters(network):
    assert 1.9e6 < count_parameters(network()) < 2.3e6


@pytest.mark.parametrize("network", [UNet, UNetPlusPlus])
def test_shape_of_the_answer(network):
    net = network(widths=(4, 8, 8)).eval()
    assert net(torch.zeros(2, 4, 32, 48)).shape == (2, len(CLASSES) + 1, 32, 48)


def test_unknown_network():
    with pytest.raises(ValueError, match="no network"):
        build_network("resnet")


def _trained_looking(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Batch statistics and head as after some training: an untouched network answers 1 % everywhere."""
    torch.manual_seed(seed)
    network.train()
    for _ in range(20):
        network(torch.randn(2, 4, 64, 64))
    torch.nn.init.normal_(network.heads.out.weight, std=0.5)
    return network.eval()


def test_folding_batch_normalisation_changes_nothing():
    torch.manual_seed(0)
    network = _trained_looking(UNet())
    fast = prepare_for_inference(network)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules())
    x = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("size", "core", "margin"), [(16, 64, 16), (512, 128, 32), (1040, 256, 64), (2000, 1008, 64)]
)
def test_tiles_cover_once_and_keep_their_margin(size, core, margin):
    size = -(-size // 16) * 16
    seen = np.zeros(size, int)
    for lo, hi, keep_lo, keep_hi in spans(size, core, margin, 16):
        assert all(v % 16 == 0 for v in (lo, hi, keep_lo, keep_hi))
        assert keep_lo - lo == margin or lo == 0
        assert hi - keep_hi == margin or hi == size
        assert hi - lo <= core + 2 * margin
        seen[keep_lo:keep_hi] += 1
    assert (seen == 1).all()


def test_no_seams_between_tiles():
    torch.manual_seed(1)
    network = prepare_for_inference(_trained_looking(UNet()))
    image = np.random.default_rng(0).standard_normal((4, 290, 350)).astype(np.float32)
    whole = predict(network, image, core=1008)
    tiled = predict(network, image, core=128, margin=64)
    assert whole.shape == (4, 290, 350)
    assert np.abs(whole - tiled).max() < 0.005
    # The same test can fail: without a margin the seams are plain.
    assert np.abs(whole - predict(network, image, core=128, margin=0)).max() > 0.02


def test_any_size_even_smaller_than_the_stride():
    network = UNet(widths=(4, 8, 8, 8, 8)).eval()
    for shape in [(5, 7), (16, 16), (33, 100)]:
        assert predict(network, np.zeros((4, *shape), np.float32)).shape == (4, *shape)


@pytest.mark.parametrize("orientations", [2, 4, 8])
def test_averaged_orientations_are_the_mean_of_turned_answers(orientations):
    torch.manual_seed(2)
    network = prepare_for_inference(_trained_looking(UNet(widths=(4, 8, 8))))
    image = np.random.default_rng(0).standard_normal((4, 32, 48)).astype(np.float32)
    got = predict(network, image, orientations=orientations)
    turns = {
        2: [(0, 0), (2, 0)],
        4: [(k, 0) for k in range(4)],
        8: [(k, m) for k in range(4) for m in (0, 1)],
    }
    want = np.zeros_like(got)
    for k, mirrored in turns[orientations]:
        turned = np.rot90(image[..., ::-1] if mirrored else image, k, axes=(1, 2))
        answer = np.rot90(predict(network, np.ascontiguousarray(turned)), -k, axes=(1, 2))
        want += answer[..., ::-1] if mirrored else answer
    np.testing.assert_allclose(got, want / orientations, atol=1e-5)


def test_heat_loss_is_the_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5, 5))
    heat = rng.uniform(0, 0.9, size=(2, 3, 5, 5))
    heat[0, 1, 2, 2] = heat[1, 0, 4, 4] = 1
    weight = (rng.random((2, 5, 5)) > 0.2).astype(float)
    weight[0, 2, 2] = weight[1, 4, 4] = 1
    total = 0.0
    for n, c, y, x in np.ndindex(*logits.shape):
        p = 1 / (1 + np.exp(-logits[n, c, y, x]))
        h = heat[n, c, y, x]
        term = (1 - p) ** 2 * np.log(p) if h == 1 else (1 - h) ** 4 * p**2 * np.log(1 - p)
        total -= term * weight[n, y, x]
    got = heat_loss(*(torch.from_numpy(a.astype(np.float32)) for a in (logits, heat, weight)))
    assert float(got) == pytest.approx(total / 2, rel=1e-4)


def test_losses_fall_towards_the_right_answer_and_ignore_what_does_not_count():
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:5, 2:5] = 1
    weight = torch.ones(1, 8, 8)
    right, wrong = (mask * 2 - 1) * 8, (1 - mask * 2) * 8
    assert mask_loss(right, mask, weight) < 0.1 < 1 < mask_loss(wrong, mask, weight)
    none = torch.zeros_like(weight)
    heat = torch.zeros(1, 3, 8, 8)
    assert heat_loss(torch.full((1, 3, 8, 8), 9.0), heat, none) == 0
