from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

from astrid_pipeline.errors import ModelError
from astrid_pipeline.learning import weights
from astrid_pipeline.learning.calibration import Calibrator
from astrid_pipeline.learning.detector import Detector, load_model
from astrid_pipeline.learning.ensemble import fit_ensemble
from astrid_pipeline.learning.unet import UNet
from astrid_pipeline.learning.weights import load_network, save_network


def small_detector(**parts) -> Detector:
    torch.manual_seed(0)
    network = UNet(widths=(4, 8, 8)).eval()
    return Detector(network, "test", "7", Calibrator("platt", np.array([1.5, -0.5])), threshold=0.4, **parts)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    small_detector(facts={"made": "here"}).save(path)
    return path


def test_a_network_comes_back_the_same(tmp_path):
    torch.manual_seed(1)
    network = UNet(widths=(4, 8, 8))
    network(torch.randn(2, 4, 16, 16))  # moves the running means off their start
    save_network(tmp_path / "n.safetensors", network, {})
    again = load_network(tmp_path / "n.safetensors")
    assert not again.training
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, again.state_dict()[name]), name


def test_a_detector_comes_back_the_same_but_for_half_precision(saved):
    made, again = small_detector(), load_model(saved)
    assert (again.name, again.version, again.threshold, again.facts) == ("test", "7", 0.4, {"made": "here"})
    assert again.calibrator.kind == "platt"
    for name, value in made.network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(again.network.state_dict()[name], value.half().float(), atol=0, rtol=0)
    # Saved again it is the same file: nothing is lost by passing it on.
    digest = again.save(saved.with_name("again.safetensors"))
    assert digest == again.digest


def test_the_ensemble_travels_with_it(tmp_path):
    rng = np.random.default_rng(0)
    inputs, y = rng.normal(size=(200, 4)), rng.random(200) < 0.5
    made = small_detector(ensemble=fit_ensemble(inputs, y))
    made.save(tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.ensemble is not None
    np.testing.assert_array_equal(again.ensemble.probability(inputs), made.ensemble.probability(inputs))


def test_absent(tmp_path):
    with pytest.raises(ModelError, match="no such model"):
        load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_cut_short(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ModelError, match="damaged") as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)


def test_a_single_altered_value_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[-20] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ModelError, match="not those that were written"):
        load_model(saved)


def test_a_pickle_is_not_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save(Evil(), tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="damaged"):
        load_model(tmp_path / "m.safetensors")
    assert not (tmp_path / "ran").exists()


def _with_header(path, **changes):
    """Rewrite the header's metadata, as another program or version would have written it."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "other"}, "no model of AstrID"),
        ({"version": "99"}, "version 99"),
        ({"kind": "real_bogus"}, "holds a real_bogus"),
        ({"channels": '["science"]'}, "made for channels"),
        ({"facts": "{broken"}, "damaged"),
        ({"facts": "{}"}, "do not fit"),
    ],
)
def test_a_model_for_something_else(saved, change, match):
    _with_header(saved, **change)
    with pytest.raises(ModelError, match=match):
        load_model(saved)


def test_other_classes_and_other_widths_are_refused(saved):
    _, facts, _ = weights.load(saved, "detector")
    _with_header(saved, facts=weights.canonical({**facts, "classes": ["cat"]}))
    with pytest.raises(ModelError, match="classes"):
        load_model(saved)
    _with_header(
        saved, facts=weights.canonical({**facts, "options": {**facts["options"], "widths": [4, 8, 16]}})
    )
    with pytest.raises(ModelError, match="do not fit"):
        load_model(saved)


def test_a_missing_tensor_is_noticed(tmp_path):
    network = UNet(widths=(4, 8, 8))
    tensors = weights.network_tensors(network)
    del tensors["heads.out.bias"]
    weights.save(tmp_path / "n.safetensors", "network", tensors, weights.network_facts(network))
    with pytest.raises(ModelError, match="1 tensors missing"):
        load_network(tmp_path / "n.safetensors")
