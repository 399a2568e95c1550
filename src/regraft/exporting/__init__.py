"""A run for other programs: ONNX, TorchScript, safetensors, timm and hub folders."""
