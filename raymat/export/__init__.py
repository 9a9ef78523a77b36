"""TorchScript, ONNX and weights files, each checked against the network."""
