"""Runs `model.stablehlo`; needs jax, flatbuffers and numpy."""

import sys
from pathlib import Path

import jax
import numpy as np
from jax import export

model, _, batches, out = sys.argv[1:]
call = jax.jit(export.deserialize(bytearray(Path(model).read_bytes())).call)
with np.load(batches) as file:
    answers = {name: np.asarray(call(file[name])[0]) for name in file.files}  # [1] are the logits
np.savez(out, **answers)  # type: ignore[arg-type]
