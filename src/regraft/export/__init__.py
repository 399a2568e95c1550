"""A finished run as something that works without regraft: ONNX, TorchScript, safetensors, timm.

Refuses to leave an artefact that answers differently from the run: each is read back and compared
before it is put in place.
"""

from regraft.export.make import (
    FORMATS,
    ExportReport,
    ExportTarget,
    Samples,
    export,
    place_of,
    ready,
    write_export,
)
from regraft.export.parity import TOLERANCE

__all__ = [
    "FORMATS",
    "TOLERANCE",
    "ExportReport",
    "ExportTarget",
    "Samples",
    "export",
    "place_of",
    "ready",
    "write_export",
]
