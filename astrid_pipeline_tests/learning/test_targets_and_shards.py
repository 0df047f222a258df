from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.errors import MissingProductError, ModelError, ReadError
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.learning.channels import channels
from astrid_pipeline.learning.data import image_seed, shards_from_differences, split_of
from astrid_pipeline.learning.samples import labelled_truth, make_sample
from astrid_pipeline.learning.shards import ShardSet, write_manifest, write_shard
from astrid_pipeline.learning.targets import SOURCE_BIT, UNUSABLE_BIT, footprint, render
from astrid_pipeline.learning.unet import CLASSES
from astrid_pipeline_tests.learning.helpers import PSF_SIGMA, toy_candidates, toy_difference, toy_set


def _truth(**columns):
    base = {"x": 20.3, "y": 14.6, "snr": 20.0, "snr_here": 20.0, "label": "transient", "usable": True,
            "length": np.nan, "angle": np.nan}  # fmt: skip
    return pd.DataFrame([{**base, **columns}])


def test_heat_is_a_gaussian_with_exactly_1_at_the_nearest_pixel():
    heat = render(_truth(), np.zeros((32, 40), np.uint8)).heat
    c = CLASSES.index("transient")
    assert heat[c, 15, 20] == 1
    assert (heat == 1).sum() == 1
    assert heat[c, 15, 22] == pytest.approx(np.exp(-((22 - 20.3) ** 2 + 0.4**2) / (2 * 1.5**2)), rel=1e-5)
    assert heat[[k for k in range(3) if k != c]].max() == 0


@pytest.mark.parametrize(
    ("change", "asked", "counts"),
    [
        ({}, True, True),
        ({"snr_here": 3.0}, False, False),
        ({"snr_here": 1.0}, False, True),
        ({"usable": False}, False, False),
        ({"label": "artefact"}, False, True),
    ],
)
def test_what_is_asked_for_and_what_does_not_count(change, asked, counts):
    target = render(_truth(**change), np.zeros((32, 40), np.uint8))
    assert (target.heat.max() == 1) == asked
    assert (target.weight[15, 20] == 1) == counts


def test_the_heat_of_a_trail_is_longer_along_it():
    trail = _truth(label="moving", length=18.0, angle=np.pi / 2)
    heat = render(trail, np.zeros((32, 40), np.uint8)).heat[CLASSES.index("moving")]
    assert heat[15, 20] == 1
    long = np.hypot(1.5, 3.0)
    assert heat[20, 20] == pytest.approx(np.exp(-(5.4**2 / long**2 + 0.3**2 / 1.5**2) / 2), rel=1e-5)
    assert heat[15, 22] == pytest.approx(np.exp(-(0.4**2 / long**2 + 1.7**2 / 1.5**2) / 2), rel=1e-5)
    # The length of what is no trail (a ghost's diameter, a star's proper motion) changes nothing.
    point = render(_truth(length=18.0, angle=1.0), np.zeros((32, 40), np.uint8)).heat
    np.testing.assert_array_equal(point, render(_truth(), np.zeros((32, 40), np.uint8)).heat)


def test_a_mover_without_a_visible_trail_is_a_point():
    difference, truth = toy_difference(4, sources=3)
    fwhm = difference.psf.fwhm()
    moved = truth.assign(kind="moving", length=[0.5 * fwhm, 1.01 * fwhm, 20.0], angle=0.0)
    moved["class"] = "asteroid"
    known = labelled_truth(moved, difference, "simulated")
    assert list(known["label"]) == ["transient", "moving", "moving"]
    assert set(known["kind"]) == {"asteroid"}
    # Where nobody says how long it was, it is believed.
    assert (
        list(labelled_truth(truth.assign(kind="moving"), difference, "injected")["label"]) == ["moving"] * 3
    )


def test_a_part_of_an_image_has_the_target_of_the_whole():
    truth = pd.concat([_truth(), _truth(x=31.0, y=2.0, label="moving"), _truth(x=5.0, y=30.0, snr_here=3.0)])
    labels = np.random.default_rng(0).integers(0, 4, (48, 64)).astype(np.uint8)
    whole, part = render(truth, labels), render(truth, labels[8:40, 16:48], x0=16, y0=8)
    for name in ("heat", "mask", "weight"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[..., 8:40, 16:48])


def test_the_mask_is_where_the_source_beats_the_noise_of_a_pixel():
    difference, truth = toy_difference(1, sources=1, snr=(39.9, 40))
    row = labelled_truth(truth, difference, "simulated")
    got = footprint(difference, row)
    yy, xx = np.mgrid[:96, :96]
    profile = np.exp(-((xx - row.x[0]) ** 2 + (yy - row.y[0]) ** 2) / (2 * 1.1**2)) / (2 * np.pi * 1.1**2)
    want = row.flux[0] * profile >= 1
    assert (got & want).sum() / (got | want).sum() > 0.9


def test_the_mask_of_a_trail_follows_it():
    difference, truth = toy_difference(1, (64, 64), sources=1, snr=(60, 61))
    row = labelled_truth(
        truth.assign(x=32.0, y=32.0, kind="trail", length=20.0, angle=0.0), difference, "simulated"
    )
    ys, xs = np.nonzero(footprint(difference, row))
    assert np.ptp(xs) > 18 > 8 > np.ptp(ys)


def test_signal_to_noise_where_the_truth_does_not_say_it():
    difference, truth = toy_difference(2)
    row = labelled_truth(truth.drop(columns="snr"), difference, "injected")
    np.testing.assert_allclose(row["snr"], truth["snr"], rtol=1e-6)
    with pytest.raises(ModelError, match="ufo"):
        labelled_truth(truth.assign(kind="ufo"), difference, "injected")


def test_registration_error_takes_signal_to_noise_away():
    difference, truth = toy_difference(2)
    plain = labelled_truth(truth, difference, "simulated")
    np.testing.assert_allclose(plain["snr_here"], truth["snr"], rtol=1e-5)
    # Astrometric noise three times the photons' makes the score smaller by √10 and leaves the flux's error alone.
    noisy = labelled_truth(truth, difference.replace(score=difference.score / np.sqrt(10)), "simulated")
    np.testing.assert_allclose(noisy["snr_here"], truth["snr"] / np.sqrt(10), rtol=1e-5)
    np.testing.assert_allclose(noisy["snr"], truth["snr"])
    # A flux error twice as large, as on a star whose PSF is known badly, halves both score and S/N.
    badly = difference.replace(score=difference.score / 2, flux_err=difference.flux_err * 2)
    here = labelled_truth(truth, badly, "simulated")["snr_here"]
    np.testing.assert_allclose(here, truth["snr"] / 2, rtol=1e-5)


def test_a_source_on_a_masked_pixel_is_not_usable():
    difference, truth = toy_difference(3)
    mask = difference.mask.copy()
    mask[round(truth.y[0]), round(truth.x[0])] = int(Mask.COSMIC_RAY)
    usable = labelled_truth(truth, difference.replace(mask=mask), "simulated")["usable"]
    assert not usable[0]
    assert usable[1:].all()


def test_what_is_written_is_read(tmp_path):
    shards = toy_set(tmp_path, range(3))
    assert len(shards) == 3
    assert shards.shape == (96, 96)
    for index in range(3):
        difference, truth = toy_difference(index)
        np.testing.assert_allclose(shards.planes(index), channels(difference), atol=2e-3)
        assert ((shards.labels(index) & UNUSABLE_BIT) != 0).sum() == 96
        assert sorted(shards.truth_of(index)["x"]) == sorted(truth["x"])
        assert len(shards.candidates_of(index)) == len(toy_candidates(difference))
    assert isinstance(shards.planes(0).base, np.memmap)
    assert shards.megapixels == pytest.approx(3 * 96 * 95 * 1e-6)


def test_several_folders_are_one_set(tmp_path):
    toy_set(tmp_path / "a", range(2))
    toy_set(tmp_path / "b", range(5, 6))
    both = ShardSet([tmp_path / "a", tmp_path / "b"])
    assert len(both) == 3
    assert len(set(both.images["image_id"])) == 3
    difference, truth = toy_difference(5)
    np.testing.assert_allclose(both.planes(2), channels(difference), atol=2e-3)
    assert sorted(both.truth_of(2)["x"]) == sorted(truth["x"])


def test_images_without_truth_or_candidates(tmp_path):
    shards = toy_set(tmp_path, range(2), sources=0)
    assert len(shards.truth) == 0
    assert len(shards.truth_of(1)) == len(shards.candidates_of(1)) == 0


def test_unfinished_and_damaged_sets_are_named(tmp_path):
    with pytest.raises(MissingProductError, match="no finished"):
        ShardSet(tmp_path)
    toy_set(tmp_path / "a", range(1))
    planes = tmp_path / "a" / "shard-00000.planes.npy"
    planes.write_bytes(planes.read_bytes()[:1000])
    with pytest.raises(ReadError, match="shard 0"):
        ShardSet(tmp_path / "a")
    toy_set(tmp_path / "b", range(1))
    manifest = tmp_path / "b" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"science"', '"sciences"'))
    with pytest.raises(ReadError, match="channels"):
        ShardSet(tmp_path / "b")


def test_the_hash_tells_sets_apart(tmp_path):
    one, same, other = (
        toy_set(tmp_path / n, r) for n, r in [("a", range(2)), ("b", range(2)), ("c", range(1, 3))]
    )
    assert one.hash == same.hash != other.hash


def test_frames_are_cut_into_tiles_that_cover_them(tmp_path):
    difference, truth = toy_difference(7, (150, 100), sources=12)
    shards_from_differences(tmp_path, [(difference, truth, toy_candidates(difference))], tile=64)
    shards = ShardSet(tmp_path)
    assert len(shards) == 6  # rows from 0, 64, 86; columns from 0 and 36
    assert set(shards.images["sky"]) == {f"toy/{y}-{x}" for y in (0, 64, 86) for x in (0, 36)}
    planes = channels(difference)
    for i, sky in enumerate(shards.images["sky"]):
        y0, x0 = (int(v) for v in sky.split("/")[1].split("-"))
        np.testing.assert_allclose(shards.planes(i), planes[:, y0 : y0 + 64, x0 : x0 + 64], atol=2e-3)
        for row in shards.truth_of(i).itertuples():
            assert np.hypot(truth["x"] - x0 - row.x, truth["y"] - y0 - row.y).min() < 1e-9
            if row.usable and row.snr > 10:
                assert shards.labels(i)[round(row.y), round(row.x)] & SOURCE_BIT
    whole = {(round(r.x, 6), round(r.y, 6)) for r in truth.itertuples()}
    seen = set()
    for i, sky in enumerate(shards.images["sky"]):
        y0, x0 = (int(v) for v in sky.split("/")[1].split("-"))
        seen |= {(round(r.x + x0, 6), round(r.y + y0, 6)) for r in shards.truth_of(i).itertuples()}
    assert seen == whole


def test_a_frame_smaller_than_a_tile_is_padded_with_what_does_not_count(tmp_path):
    difference, truth = toy_difference(8, (50, 70))
    shards_from_differences(tmp_path, [(difference, truth, toy_candidates(difference))], tile=96)
    labels = ShardSet(tmp_path).labels(0)
    assert labels.shape == (96, 96)
    assert (labels[50:] & UNUSABLE_BIT).all()
    assert (labels[:, 70:] & UNUSABLE_BIT).all()
    with pytest.raises(ModelError, match="no difference"):
        shards_from_differences(tmp_path / "none", [])


def test_a_piece_of_sky_is_in_one_split_and_shares_are_kept():
    shares = {"train": 0.7, "valid": 0.2, "test": 0.1}
    splits = {f"field/{i}": split_of(f"field/{i}", shares, seed=1) for i in range(4000)}
    for name, share in shares.items():
        assert np.mean([s == name for s in splits.values()]) == pytest.approx(share, abs=0.03)
    assert all(split_of(sky, shares, seed=1) == split for sky, split in splits.items())
    assert any(split_of(sky, shares, seed=2) != split for sky, split in splits.items())
    with pytest.raises(ModelError, match="sum to"):
        split_of("x", {"train": 0.5})


def test_seeds_of_splits_do_not_meet():
    seeds = {image_seed(0, split, i) for split in ("train", "test") for i in range(1000)}
    assert len(seeds) == 2000


def test_a_shard_holds_images_of_one_shape(tmp_path):
    samples = []
    for shape in [(64, 64), (96, 96)]:
        difference, truth = toy_difference(1, shape)
        samples.append(
            make_sample(difference, labelled_truth(truth, difference, "x"), toy_candidates(difference), {})
        )
    with pytest.raises(ValueError, match="one shape"):
        write_shard(tmp_path, 0, samples)
    with pytest.raises(ValueError, match="at least one"):
        write_shard(tmp_path, 0, [])
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(FileNotFoundError):
        write_manifest(tmp_path, [0], {})


def test_the_bound_of_a_position_is_that_of_a_gaussian():
    difference, truth = toy_difference(2)
    row = labelled_truth(truth, difference, "simulated")
    # Of a Gaussian of width s in white noise: √2 s over the S/N.
    np.testing.assert_allclose(row["position_bound"] * truth["snr"], np.sqrt(2) * PSF_SIGMA, rtol=0.01)


def test_simulated_skies_stand_beside_a_survey_s_own_in_the_stated_share(tmp_path):
    from astrid_pipeline.learning.dataset import OWN_NIGHTS, shares, simulated_share, with_simulated

    assert simulated_share(0) == 1
    assert simulated_share(OWN_NIGHTS) == simulated_share(40) == 0
    assert simulated_share(4) == pytest.approx(0.6)
    own = toy_set(tmp_path / "own", range(4), (128, 128))
    own = own.select(np.array([True, True, False, True]))
    both = with_simulated(own, 0.4, tmp_path / "skies", seed=3)
    assert len(both) == 5
    assert shares(both.images)["simulated"] == 5  # the toy set calls itself so as well
    assert both.images["image_id"].str.startswith("simulated:").tolist() == [False] * 3 + [True] * 2
    assert both.hash != own.hash
    for index in range(len(both)):
        name = both.image_id(index)
        assert both.planes(index).shape == (4, 128, 128)
        assert set(both.truth_of(index)["image_id"]) <= {name}
    np.testing.assert_array_equal(both.planes(1), own.planes(1))
    assert both.planes(3).any()
    assert len(both.truth_of(3)) + len(both.truth_of(4)) > 0
    assert with_simulated(own, 0.0, tmp_path / "none") is own
    with pytest.raises(ModelError, match="share"):
        with_simulated(own, 1.0, tmp_path / "none")
    with pytest.raises(ModelError, match="one set"):
        own.plus(toy_set(tmp_path / "other", range(1), (96, 96)), "x")
