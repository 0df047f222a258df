"""The short look at a network between training steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from astrid_pipeline.learning.losses import heat_loss, mask_loss
from astrid_pipeline.learning.matching import average_precision, match
from astrid_pipeline.learning.network import predict
from astrid_pipeline.learning.peaks import MASK_LEVEL, find_peaks
from astrid_pipeline.learning.shards import ShardSet
from astrid_pipeline.learning.targets import SOURCE_BIT, UNUSABLE_BIT, Target, render
from astrid_pipeline.learning.train_config import TrainConfig
from astrid_pipeline.learning.unet import CLASSES

#: Truth of at least this S/N is asked for; peaks of less heat than this are not looked at.
VALID_SNR, VALID_HEAT = 5.0, 0.02


def mask_iou(probability: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Return intersection and union, in pixels, of the predicted and true masks on usable pixels."""
    usable = (labels & UNUSABLE_BIT) == 0
    predicted = (probability > MASK_LEVEL) & usable
    true = ((labels & SOURCE_BIT) != 0) & usable
    return int((predicted & true).sum()), int((predicted | true).sum())


def validate_network(
    network: nn.Module, shards: ShardSet, config: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Return valid_loss, valid_ap (S/N ≥ 5, peaks of the network alone) and valid_iou on whole images."""
    network.eval()
    scores, verdicts, wanted = [], [], 0
    inside = union = 0
    losses = []
    for index in range(min(config.validate_images, len(shards))):
        labels = np.asarray(shards.labels(index))
        truth = shards.truth_of(index)
        probability = predict(network, shards.planes(index), device=device)
        target = render(truth, labels)
        losses.append(_loss(probability, target, config))
        peaks = find_peaks(probability, (labels & UNUSABLE_BIT) != 0, VALID_HEAT)
        verdict, _ = match(peaks.rename(columns={"unet_raw": "score"}), truth, min_snr=VALID_SNR)
        scores.append(peaks["unet_raw"].to_numpy())
        verdicts.append(verdict)
        wanted += int((truth["label"].isin(CLASSES) & (truth["snr"] >= VALID_SNR) & truth["usable"]).sum())
        i, u = mask_iou(probability[-1], labels)
        inside, union = inside + i, union + u
    ap = average_precision(np.concatenate(scores), np.concatenate(verdicts), wanted)
    return {
        "valid_loss": float(np.mean(losses)),
        "valid_ap": 0.0 if np.isnan(ap) else ap,
        "valid_iou": inside / union if union else 0.0,
    }


def _loss(probability: npt.NDArray[np.float32], target: Target, config: TrainConfig) -> float:
    logits = torch.logit(torch.from_numpy(probability)[None], eps=1e-6)
    heat, mask, weight = (torch.from_numpy(a)[None] for a in (target.heat, target.mask, target.weight))
    first, second = heat_loss(logits[:, :-1], heat, weight), mask_loss(logits[:, -1], mask, weight)
    return float(first + config.mask_weight * second)
