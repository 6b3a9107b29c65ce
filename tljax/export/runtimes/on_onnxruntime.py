"""Runs `model.onnx`; needs onnxruntime and numpy."""

import sys

import numpy as np
import onnxruntime

model, _, batches, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
with np.load(batches) as file:
    answers = {name: session.run(["probabilities"], {"image": file[name]})[0] for name in file.files}
np.savez(out, **answers)  # type: ignore[arg-type]
