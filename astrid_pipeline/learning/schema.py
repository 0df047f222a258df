"""What learning says of a change: its classes, and the table of detections. Loads no torch."""

from __future__ import annotations

from astrid_pipeline.imaging.candidates import CANDIDATES
from astrid_pipeline.tables import Column, TableSchema

#: What a detection can be, in the order of the heat maps.
CLASSES: tuple[str, ...] = ("transient", "variable", "moving")

DETECTIONS = TableSchema(
    "detections",
    "Changes that the models hold for real, one row each",
    (
        Column("detection_id", "string", "unique: exposure and running number, brightest first"),
        *CANDIDATES.columns,
        Column("score", "float64", "calibrated probability that it is real"),
        Column("class", "string", "transient, variable or moving: the likeliest"),
        *(
            Column(f"p_{name}", "float64", f"probability that it is {name}, if it is real")
            for name in CLASSES
        ),
        Column("mask_area", "float64", "pixels in which it stands out of the noise", "px"),
        Column("uncertainty", "float64", "standard deviation of the network's probability under dropout"),
        Column("unet_score", "float64", "the network's own calibrated probability"),
        Column("real_bogus", "float64", "probability by the boosted trees"),
        Column("isolation", "float64", "Isolation Forest: 0-1, the higher the less like a real change"),
        Column("one_class", "float64", "One-Class SVM: above 0 outside what real changes look like"),
        Column(
            "origin", "string", "candidate, or network where no candidate was within reach and flux is forced"
        ),
        Column("model_name", "string", "name of the model"),
        Column("model_version", "string", "its version"),
    ),
    sort_by=("exposure_id", "detection_id"),
)
