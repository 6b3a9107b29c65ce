"""Runs `model.pth` in torchvision's network, which the metadata says how to build; needs torch and torchvision."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

# torchvision's compiled operators do not load beside a torch of another build, and no network here needs them.
register = torch.library.register_fake
torch.library.register_fake = lambda op, *a, **k: (
    (lambda f: f) if isinstance(op, str) and op.startswith("torchvision::") else register(op, *a, **k)
)
import torchvision  # noqa: E402, F401

torch.library.register_fake = register
path, metadata, batches, out = sys.argv[1:]
about = json.loads(Path(metadata).read_text(encoding="utf-8"))
names: dict = {}
exec("\n".join(about["torchvision"]), names)
model = names["model"]
model.load_state_dict(torch.load(path, weights_only=True))
model.eval()
mean, std = (torch.tensor(about["preprocessing"][name]) for name in ("mean", "std"))
answers = {}
with np.load(batches) as file, torch.no_grad():
    for name in file.files:
        x = (torch.from_numpy(file[name]).float() / 255 - mean) / std
        logits = model(x.permute(0, 3, 1, 2)) / about["temperature"]
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        answers[name] = logits.softmax(dim=1).numpy()
np.savez(out, **answers)  # type: ignore[arg-type]
