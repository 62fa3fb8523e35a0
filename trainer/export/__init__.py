"""What a finished run ships: ONNX and int8 graphs that run without this package, each proven against the weights."""
