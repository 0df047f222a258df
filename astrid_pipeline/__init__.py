"""AstrID: time series of telescope images → vetted transient detections → better models."""

__version__ = "0.1.0"
