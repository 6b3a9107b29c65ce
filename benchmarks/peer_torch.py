"""The PyTorch side of the CPU benchmark, as a worker: one JSON command per line on stdin, one JSON answer per line.

    python benchmarks/peer_torch.py        (needs torch, torchvision, pillow; nothing of tljax)

It is written as PyTorch's users would write it well: channels_last, frozen parts without autograd and in eval mode,
only what trains in a fused optimizer, pictures decoded once. A driver keeps it waiting and so measures both sides in
turn. Commands, their fields and their answers are the keyword arguments and results of the methods of `Worker`; `do`
names the method: `{"do": "step", "batch_size": 32, "steps": 5}`. Whatever fails answers `{"error": "one line"}`.
"""

import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def import_torchvision() -> Any:
    """Imports torchvision also where its compiled operators do not load; models and transforms need none of them."""
    register: Any = torch.library.register_fake
    torch.library.register_fake = lambda op, *a, **k: (
        (lambda f: f) if isinstance(op, str) and op.startswith("torchvision::") else register(op, *a, **k)
    )
    try:
        import torchvision

        return torchvision
    finally:
        torch.library.register_fake = register


torchvision = import_torchvision()
transforms = torchvision.transforms
MEAN, STD = (255 * torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
WORKERS = 2  # threads that decode, processes that augment
HEADS = {"squeezenet1_0": "classifier.1.", "resnet18": "fc."}  # where the file holds the layer that is replaced
Batches = Iterable[tuple[Tensor, Tensor]]


def normalized(images: Tensor) -> Tensor:
    """uint8 `[B, H, W, 3]` to float32 `[B, 3, H, W]`, channels_last without a copy of its own."""
    return images.permute(0, 3, 1, 2).float().sub_(MEAN).div_(STD)


def make_stages(arch: str, weights: str, classes: int, missing_ok: Sequence[str]) -> nn.Sequential:
    """torchvision's network with what the file holds and a fresh last layer, cut into named stages, the head last."""
    net = getattr(torchvision.models, arch)()
    found = torch.load(weights, map_location="cpu", weights_only=True)
    lost = net.load_state_dict({k: v for k, v in found.items() if not k.startswith(HEADS[arch])}, strict=False)
    missing = [k for k in lost.missing_keys if not k.startswith((HEADS[arch], *(f"{m}." for m in missing_ok)))]
    if missing or lost.unexpected_keys:
        raise ValueError(f"{weights}: missing {missing[:3]}, unexpected {lost.unexpected_keys[:3]}")
    if arch == "squeezenet1_0":
        net.classifier[1] = nn.Conv2d(512, classes, 1)
        stages = {"features": net.features, "head": nn.Sequential(net.classifier, nn.Flatten())}
    else:
        stages = {"stem": nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)}
        stages |= {name: getattr(net, name) for name in ("layer1", "layer2", "layer3", "layer4")}
        stages |= {"pool": nn.Sequential(net.avgpool, nn.Flatten()), "head": nn.Linear(net.fc.in_features, classes)}
    return nn.Sequential(OrderedDict(stages)).to(memory_format=torch.channels_last)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train: optimizer 'adam' or 'sgd'; bn 'train' or 'eval', of trained stages, the frozen ones evaluate."""

    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    bn: str = "train"

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sgd") or self.bn not in ("train", "eval"):
            raise ValueError(f"optimizer={self.optimizer!r} with bn={self.bn!r} is not known")


class Augmented(Dataset):
    """Training views of decoded pictures: `(uint8 [size, size, 3], position)`, normalized later, once per batch."""

    def __init__(self, pictures: Sequence[Image.Image], positions: Sequence[int], transform: Callable[..., Any]):
        self.pictures, self.positions, self.transform = pictures, positions, transform

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.array(self.transform(self.pictures[self.positions[i]])), self.positions[i]


class Worker:
    """Holds the pictures and the network between commands."""

    def __init__(self) -> None:
        self.pictures: list[Image.Image] = []
        self.centers = torch.empty(0)
        self.labels = torch.empty(0)
        self.splits: dict[str, Tensor] = {}
        self.net = self.frozen = self.rest = nn.Sequential()
        self.trained: tuple[str, ...] = ()
        self.initial: dict[str, Tensor] = {}
        self.recipe = Recipe()

    def versions(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "torchvision": torchvision.__version__, "threads": torch.get_num_threads()}

    def data(self, *, root: str, names: Sequence[str], labels: Sequence[int], splits: dict[str, list[int]],
             size: int = 224, resize: int = 256) -> dict[str, float]:  # fmt: skip
        """Decodes and resizes every picture once and cuts its center; both stay in memory as uint8."""
        shrink, cut = transforms.Resize(resize), transforms.CenterCrop(size)
        centers = np.empty((len(names), size, size, 3), np.uint8)

        def decode(i: int) -> Image.Image:
            with Image.open(Path(root, names[i])) as opened:
                picture = shrink(opened.convert("RGB"))
            centers[i] = np.asarray(cut(picture))
            return picture

        began = time.perf_counter()
        with ThreadPoolExecutor(WORKERS) as pool:  # Pillow lets go of Python's lock
            self.pictures = list(pool.map(decode, range(len(names))))
        seconds = time.perf_counter() - began
        self.centers, self.labels = torch.from_numpy(centers), torch.tensor(labels)
        self.splits = {name: torch.tensor(positions) for name, positions in splits.items()}
        return {"seconds": seconds}

    def model(self, *, arch: str, weights: str, classes: int, train: Sequence[str], missing_ok: Sequence[str] = (),
              seed: int = 0) -> dict[str, Any]:  # fmt: skip
        """Builds the network; `train` names stages ('head', 'layer4', ...) or is ['all']."""
        torch.manual_seed(seed)
        self.net = make_stages(arch, weights, classes, missing_ok)
        names = [name for name, _ in self.net.named_children()]
        self.trained = tuple(names if list(train) == ["all"] else train)
        if not self.trained or not set(self.trained) <= set(names):
            raise ValueError(f"train={list(train)} is not among {names}, nor ['all']")
        first = min(names.index(name) for name in self.trained)
        # What lies below the first trained stage always gives the same for the same picture.
        self.frozen, self.rest = self.net[:first], self.net[first:]
        self.initial = {k: v.clone() for k, v in self.net.state_dict().items()}
        return {}

    def train(self, *, epochs: int, batch_size: int = 32, augment: bool = False, cache: bool = False,
              seed: int = 0, **recipe: Any) -> dict[str, Any]:  # fmt: skip
        """Trains from the initial state by a `Recipe`. `seconds_per_epoch` holds `val_seconds`."""
        if cache and (augment or not len(self.frozen)):
            raise ValueError("cache needs a frozen part and augment=false")
        torch.manual_seed(seed)
        self.recipe = Recipe(**recipe)
        update = self._begin()
        inputs, cache_seconds = self._of_centers, 0.0
        if cache:
            began = time.perf_counter()
            rows = self._frozen_outputs(batch_size)
            inputs, cache_seconds = rows.__getitem__, time.perf_counter() - began
        order = torch.Generator().manual_seed(seed)
        loader = self._loader(batch_size, order) if augment else None
        seconds, val_seconds, correct = [], [], []
        for _ in range(epochs):
            began = time.perf_counter()
            positions = self.splits["train"]
            if loader is None:
                shuffled = positions[torch.randperm(len(positions), generator=order)]
                batches = self._batches(shuffled, batch_size, inputs)
            else:
                batches = ((self._features(images), self.labels[at]) for images, at in loader)
            self._mode()
            self._steps(batches, update)
            trained = time.perf_counter()
            correct.append(self._correct(self._batches(self.splits["val"], batch_size, inputs)))
            seconds.append(time.perf_counter() - began)
            val_seconds.append(time.perf_counter() - trained)
        times = {"seconds_per_epoch": seconds, "val_seconds": val_seconds, "cache_seconds": cache_seconds}
        return times | {"val_correct": correct, "val_seen": len(self.splits["val"])}

    def step(self, *, batch_size: int, steps: int, size: int = 224, **recipe: Any) -> dict[str, float]:
        """The median of `steps` whole training steps, frozen part included, on one random uint8 batch; 2 warm it up."""
        images = torch.randint(256, (batch_size, size, size, 3), dtype=torch.uint8)
        labels = torch.zeros(batch_size, dtype=torch.long)
        self.recipe = Recipe(**recipe)
        update = self._begin()
        self._mode()
        seconds = []
        for _ in range(2 + steps):
            began = time.perf_counter()
            self._steps([(self._features(images), labels)], update)
            seconds.append(time.perf_counter() - began)
        return {"seconds": statistics.median(seconds[2:])}

    def augment(self, *, count: int, rotation: float = 10, size: int = 224) -> dict[str, float]:
        """Pictures per second in one thread, torchvision's defaults (so nearest neighbors where it rotates)."""
        transform = training_views(size, transforms.RandomRotation(rotation))
        began = time.perf_counter()
        for picture in itertools.islice(itertools.cycle(self.pictures), count):
            np.array(transform(picture))
        return {"images_per_second": count / (time.perf_counter() - began)}

    def _begin(self) -> torch.optim.Optimizer:
        """Restores the network, sets what trains, and makes its optimizer."""
        if not self.initial:
            raise ValueError("there is no model yet")
        self.net.load_state_dict(self.initial)
        self.net.requires_grad_(False)
        for stage in self.trained:
            self.net.get_submodule(stage).requires_grad_(True)
        for module in self._held_norms():
            module.requires_grad_(False)
        params = [p for p in self.net.parameters() if p.requires_grad]
        if self.recipe.optimizer == "sgd":
            return torch.optim.SGD(params, self.recipe.lr, momentum=self.recipe.momentum, fused=True)
        return torch.optim.Adam(params, self.recipe.lr, fused=True)

    def _held_norms(self) -> list[nn.Module]:
        return [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d) and self.recipe.bn == "eval"]

    def _mode(self) -> None:
        self.net.eval()
        for stage in self.trained:
            self.net.get_submodule(stage).train()
        for module in self._held_norms():
            module.eval()

    def _features(self, images: Tensor) -> Tensor:
        """What the trained part takes, for uint8 images; in no_grad, since autograd may keep what it gives."""
        with torch.no_grad():
            return self.frozen(normalized(images))

    def _of_centers(self, positions: Tensor) -> Tensor:
        return self._features(self.centers[positions])

    def _frozen_outputs(self, batch_size: int) -> Tensor:
        """The caching peer: the frozen part's outputs for all center crops, `[N, ...]`, channels_last."""
        self.net.eval()
        with torch.inference_mode():
            one = self.frozen(normalized(self.centers[:1]))
        layout = torch.channels_last if one.dim() == 4 else torch.contiguous_format
        # Made outside inference mode: autograd may keep its rows.
        rows = torch.empty((len(self.centers), *one.shape[1:]), memory_format=layout)
        with torch.inference_mode():
            for at in torch.cat([self.splits["train"], self.splits["val"]]).split(batch_size):
                rows[at] = self.frozen(normalized(self.centers[at]))
        return rows

    def _batches(self, positions: Tensor, batch_size: int, inputs: Callable[[Tensor], Tensor]) -> Batches:
        for at in positions.split(batch_size):
            yield inputs(at), self.labels[at]

    def _loader(self, batch_size: int, order: torch.Generator) -> DataLoader:
        views = Augmented(self.pictures, self.splits["train"].tolist(), training_views(self.centers.shape[1]))
        kept = {"num_workers": WORKERS, "persistent_workers": True}
        return DataLoader(views, batch_size, shuffle=True, generator=order, **kept)

    def _steps(self, batches: Batches, update: torch.optim.Optimizer) -> None:
        for inputs, labels in batches:
            update.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(self.rest(inputs), labels).backward()
            update.step()

    @torch.inference_mode()
    def _correct(self, batches: Batches) -> int:
        self.net.eval()
        return sum(int((self.rest(inputs).argmax(1) == labels).sum()) for inputs, labels in batches)


def training_views(size: int, *more: Any) -> Any:
    """torchvision's usual augmentation of a Pillow picture."""
    return transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *more])


def answer_commands(*methods: Callable[..., Any]) -> None:
    """Answers commands, which name one of the methods, until stdin ends."""
    # Answers have stdout to themselves: whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    commands = {f.__name__: f for f in methods}
    for line in filter(str.strip, sys.stdin):
        try:
            command = json.loads(line)
            answer = commands[command.pop("do")](**command)
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    worker = Worker()
    answer_commands(worker.versions, worker.data, worker.model, worker.train, worker.step, worker.augment)
