"""What exists: one module a stage, in the order of the data; inputs → one call → metadata."""

from __future__ import annotations

from astrid_pipeline.assets.calibration import calibrated_frames
from astrid_pipeline.assets.detections import alerts, detections
from astrid_pipeline.assets.differences import candidates, difference_images
from astrid_pipeline.assets.health import data_health, survey_summary
from astrid_pipeline.assets.loop import label_challenger, label_verdict, labelled_peaks
from astrid_pipeline.assets.models import classical, ensemble, evaluation, real_bogus, unet
from astrid_pipeline.assets.observations import master_calibrations, observations
from astrid_pipeline.assets.reference_dataset import reference_dataset
from astrid_pipeline.assets.references import reference_images
from astrid_pipeline.assets.review import gold_standard, light_curves, stamps
from astrid_pipeline.assets.samples import injected_night, training_dataset
from astrid_pipeline.assets.summary import night_summary
from astrid_pipeline.assets.survey_alerts import alert_stamps, survey_alerts

#: In the order of the data.
ALL = (
    observations,
    master_calibrations,
    calibrated_frames,
    reference_images,
    reference_dataset,
    difference_images,
    candidates,
    detections,
    alerts,
    stamps,
    light_curves,
    gold_standard,
    injected_night,
    night_summary,
    survey_alerts,
    alert_stamps,
    survey_summary,
    data_health,
    training_dataset,
    unet,
    real_bogus,
    classical,
    ensemble,
    evaluation,
    labelled_peaks,
    label_challenger,
    label_verdict,
)
