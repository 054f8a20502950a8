"""What a run looks like: the information plane of a training, and pictures. Arrays in, files out."""
# SPDX-License-Identifier: MIT

from hrel_ext.report.information_plane import (
    DegenerateInputWarning,
    InformationPlane,
    PlaneHeader,
    PlaneHistory,
)

__all__ = ["DegenerateInputWarning", "InformationPlane", "PlaneHeader", "PlaneHistory"]
