"""A finished run as something that works without regraft: an ONNX graph, TorchScript, safetensors, a timm folder, a folder for the hub.

Refuses to leave an artefact whose answers are not those of the run: each is read back and asked before it is put in its place.
"""

from regraft.export.make import FORMATS, Samples, export, place_of, ready
from regraft.export.parity import TOLERANCE

__all__ = ["FORMATS", "TOLERANCE", "Samples", "export", "place_of", "ready"]
