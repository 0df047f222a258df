"""How results look: pictures of frames and differences, and the report that opens by double click."""

from __future__ import annotations

from astrid_pipeline.report.pictures import frame_png, quad_png, stamps_png, thumb_png

__all__ = ["frame_png", "quad_png", "stamps_png", "thumb_png"]
