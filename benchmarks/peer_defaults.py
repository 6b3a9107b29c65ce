"""What others' own defaults make of a folder of images, in PyTorch: the peers of `defaults.py`, as a worker.

    python benchmarks/peer_defaults.py        (commands and answers as in peer_torch.py; nothing of tljax)

All start from torchvision's SqueezeNet 1.0, see 224 pixels and decode each picture once. Each number is its source's:

- fastai (`fastai/callback/schedule.py`, `fastai/vision/learner.py`, `fastai/layers.py`, `fastai/optimizer.py`):
  `vision_learner(dls, squeezenet1_0).fine_tune(epochs)` over `ImageDataLoaders.from_folder(path, valid_pct=0.2,
  item_tfms=Resize(224))`, without `batch_tfms`, as in its quick start. Its head, three groups of rates, one frozen
  epoch, then `epochs`, both one-cycle; batches of 64, what is left over dropped. fastai refuses a batch that is larger
  than the training set; here it is then the whole set. `fine_tune` has no default for `epochs`: 5 and 10 are ours.
- torchvision ("Transfer Learning for Computer Vision Tutorial"): SGD 1e-3, momentum 0.9, a tenth every 7 epochs, 25
  epochs, batches of 4, random resized crop and flip, the epoch that validation likes best; the new last layer alone, or
  all. Its data come split; here a fifth of each class validates.
- Keras (guide "Transfer learning & fine-tuning"): average pooling, dropout 0.2, a dense layer; 20 epochs of it by Adam
  1e-3, then 10 of all at 1e-5; batches of 32, pictures squeezed to a square, flip and rotation by up to a tenth of a
  turn; a fifth of the images is left out, as by its `validation_split=0.2`, and chooses nothing.
"""

import copy
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peer_torch import HEADS, answer_commands, normalized, torchvision, training_views

ARCH, SIZE, VALIDATED = "squeezenet1_0", 224, 0.2
Pictures = Sequence[Image.Image]
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Folder:
    """`folder/{train,test}/CLASS/...`: files and labels of each part, sorted by name."""

    files: dict[str, list[Path]]
    labels: dict[str, Tensor]
    classes: list[str]


def list_folder(root: Path) -> Folder:
    """Lists what torchvision's ImageFolder would find."""
    classes = sorted(place.name for place in (root / "train").iterdir())
    files = {part: sorted((root / part).glob("*/*")) for part in ("train", "test")}
    labels = {part: torch.tensor([classes.index(f.parent.name) for f in found]) for part, found in files.items()}
    return Folder(files, labels, classes)


def decode(files: Sequence[Path], shrink: Callable[[Image.Image], Image.Image]) -> list[Image.Image]:
    """Every picture once, resized."""

    def read(file: Path) -> Image.Image:
        with Image.open(file) as opened:
            return shrink(opened.convert("RGB"))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(read, files))


def centers(pictures: Pictures) -> Tensor:
    """uint8 `[N, size, size, 3]`."""
    cut = torchvision.transforms.CenterCrop(SIZE)
    return torch.from_numpy(np.stack([np.asarray(cut(picture)) for picture in pictures]))


def features(weights: str) -> nn.Sequential:
    """SqueezeNet's features with ImageNet weights."""
    net = getattr(torchvision.models, ARCH)()
    found = torch.load(weights, map_location="cpu", weights_only=True)
    kept = {k: v for k, v in found.items() if not k.startswith(HEADS[ARCH])}
    lost = net.load_state_dict(kept, strict=False)
    if lost.unexpected_keys or not all(k.startswith(HEADS[ARCH]) for k in lost.missing_keys):
        raise ValueError(f"{weights} is not torchvision's {ARCH}")
    return net.features


class ConcatPool(nn.Module):
    """fastai's AdaptiveConcatPool2d: the largest and the mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)


def fastai_head(channels: int, classes: int) -> nn.Sequential:
    """`create_head(channels, classes)`: two layers with batch norm and dropout (0.25, 0.5), by Kaiming."""
    head = nn.Sequential(
        ConcatPool(),
        nn.BatchNorm1d(2 * channels), nn.Dropout(0.25), nn.Linear(2 * channels, 512, bias=False), nn.ReLU(),
        nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, classes, bias=False),
    )  # fmt: skip
    for module in head:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.bias, 1e-3)
    return head


def one_cycle(at: float, peak: float, start: float, middle: float, end: float) -> float:
    """`combined_cos`: by cosine from `start` to `middle`, where `at` reaches `peak`, and on to `end` at 1."""

    def cosine(a: float, b: float, share: float) -> float:
        return a + (1 + math.cos(math.pi * (1 - share))) * (b - a) / 2

    return cosine(start, middle, at / peak) if at < peak else cosine(middle, end, (at - peak) / (1 - peak))


def random_squares(pictures: Pictures) -> Tensor:
    """fastai's `Resize`, whose square lies anywhere along the longer side while it trains."""
    cut = torchvision.transforms.RandomCrop(SIZE)
    return torch.from_numpy(np.stack([np.asarray(cut(picture)) for picture in pictures]))


def keras_views(images: Tensor) -> Tensor:
    """float32 `[B, 3, H, W]`: `RandomFlip("horizontal")`, `RandomRotation(0.1)`, whose corners are reflections."""
    turn = (torch.rand(len(images)) * 2 - 1) * 0.1 * 2 * math.pi
    flip = torch.where(torch.rand(len(images)) < 0.5, -1.0, 1.0)
    zero, cos, sin = torch.zeros(len(images)), torch.cos(turn), torch.sin(turn)
    rows = torch.stack([torch.stack([flip * cos, -sin, zero], 1), torch.stack([flip * sin, cos, zero], 1)], 1)
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def shuffled(images: Callable[[Tensor], Tensor], labels: Tensor, members: Tensor, size: int, *,
             drop: bool = False) -> Batches:  # fmt: skip
    """An epoch of batches `(images(positions), labels)`."""
    for at in members[torch.randperm(len(members))].split(size):
        if len(at) == size or not drop:
            yield images(at), labels[at]


@torch.inference_mode()
def predict(net: nn.Module, images: Tensor) -> Tensor:
    """Classes, int64 `[N]`, for uint8 images."""
    net.eval()
    return torch.cat([net(normalized(part)).argmax(1) for part in images.split(32)])


def fit_epoch(net: nn.Module, update: torch.optim.Optimizer, batches: Batches, before: Callable[[], None]) -> int:
    """Trains on batches of float32 images in the mode that the network is in; the number of updates."""
    count = 0
    for images, labels in batches:
        before()
        update.zero_grad(set_to_none=True)
        functional.cross_entropy(net(images), labels).backward()
        update.step()
        count += 1
    return count


def left_out_by_chance(count: int) -> tuple[Tensor, Tensor]:
    """fastai's `RandomSplitter`, Keras's `validation_split`: (kept, left out), whatever the classes."""
    order, cut = torch.randperm(count), int(VALIDATED * count)
    return order[cut:], order[:cut]


def left_out_by_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(kept, left out), a fifth of each class."""
    kept, out = [], []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        order = members[torch.randperm(len(members))]
        cut = int(VALIDATED * len(order))
        kept.append(order[cut:])
        out.append(order[:cut])
    return torch.cat(kept), torch.cat(out)


class Fit:
    """One run: the folder, its pictures once they are decoded, what it took."""

    def __init__(self, root: Path, weights: str, scale: float):
        self.folder, self.weights, self.scale = list_folder(root), weights, scale
        self.classes, self.labels = len(self.folder.classes), self.folder.labels["train"]
        self.decoding, self.updates = 0.0, 0

    def epochs(self, count: int) -> int:
        """The source's number of epochs, scaled; one at least."""
        return max(1, round(count * self.scale))

    def decode(self, shrink: Any) -> tuple[list[Image.Image], Tensor]:
        """Training pictures; the test's centers."""
        began = time.perf_counter()
        train, test = (decode(self.folder.files[part], shrink) for part in ("train", "test"))
        self.decoding = time.perf_counter() - began
        return train, centers(test)

    def fastai(self, epochs: int) -> Tensor:
        pictures, test = self.decode(torchvision.transforms.Resize(SIZE))
        kept, _ = left_out_by_chance(len(pictures))
        body = features(self.weights)
        net = nn.Sequential(body, fastai_head(512, self.classes)).to(memory_format=torch.channels_last)
        rate, size = 2e-3, min(64, len(kept))
        self._cycle(net, pictures, kept, size, self.epochs(1), [rate], div=25, peak=0.99)
        rate /= 2
        self._cycle(net, pictures, kept, size, self.epochs(epochs), [rate / 100, rate / 10, rate], div=5, peak=0.3)
        return predict(net, test)

    def _cycle(self, net: nn.Sequential, pictures: Pictures, members: Tensor, size: int, epochs: int,
               rates: Sequence[float], *, div: float, peak: float) -> None:  # fmt: skip
        """`fit_one_cycle`: one rate trains the head alone, three the two groups of the body, too."""
        body = net[0]
        groups = [[*body[:5].parameters()], [*body[5:].parameters()], [*net[1].parameters()]][-len(rates) :]
        body.requires_grad_(len(rates) > 1)
        parts = []
        for rate, params in zip(rates, groups, strict=True):  # no decay of biases and batch norms
            for decay, chosen in ((0.01, [p for p in params if p.ndim > 1]), (0.0, [p for p in params if p.ndim == 1])):
                parts.append({"params": chosen, "weight_decay": decay, "peak": rate})
        update = torch.optim.AdamW(parts, lr=0.0, betas=(0.95, 0.99), eps=1e-5, fused=True)
        steps, step = epochs * (len(members) // size), 0

        def before() -> None:
            nonlocal step
            momentum = one_cycle(step / steps, peak, 0.95, 0.85, 0.95)
            for group in update.param_groups:
                top = group["peak"]
                group["lr"] = one_cycle(step / steps, peak, top / div, top, top / 1e5)
                group["betas"] = (momentum, 0.99)
            step += 1

        def squares(at: Tensor) -> Tensor:
            return normalized(random_squares([pictures[i] for i in at]))

        for _ in range(epochs):
            net.train()
            self.updates += fit_epoch(net, update, shuffled(squares, self.labels, members, size, drop=True), before)

    def torchvision(self, train: str) -> Tensor:
        pictures, test = self.decode(torchvision.transforms.Resize(256))
        kept, out = left_out_by_class(self.labels)
        net = getattr(torchvision.models, ARCH)()
        net.features = features(self.weights)
        net.classifier[1] = nn.Conv2d(512, self.classes, 1)
        net = net.to(memory_format=torch.channels_last)
        net.features.requires_grad_(train == "all")
        validation, views = centers([pictures[i] for i in out]), training_views(SIZE)
        update = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1e-3, momentum=0.9, fused=True)
        schedule = torch.optim.lr_scheduler.StepLR(update, 7, 0.1)

        def augmented(at: Tensor) -> Tensor:
            return normalized(torch.from_numpy(np.stack([np.asarray(views(pictures[i])) for i in at])))

        best, most = copy.deepcopy(net.state_dict()), 0
        for _ in range(self.epochs(25)):
            net.train()
            self.updates += fit_epoch(net, update, shuffled(augmented, self.labels, kept, 4), lambda: None)
            schedule.step()
            right = int((predict(net, validation) == self.labels[out]).sum())
            if right > most:
                best, most = copy.deepcopy(net.state_dict()), right
        net.load_state_dict(best)
        return predict(net, test)

    def keras(self) -> Tensor:
        pictures, test = self.decode(torchvision.transforms.Resize((SIZE, SIZE)))
        kept, _ = left_out_by_chance(len(pictures))
        images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        body, dense = features(self.weights), nn.Linear(512, self.classes)
        nn.init.xavier_uniform_(dense.weight)
        nn.init.zeros_(dense.bias)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), dense)
        net = nn.Sequential(body, head).to(memory_format=torch.channels_last)

        def augmented(at: Tensor) -> Tensor:
            return keras_views(normalized(images[at]))

        for rate, epochs in ((1e-3, 20), (1e-5, 10)):
            body.requires_grad_(rate == 1e-5)
            chosen = [p for p in net.parameters() if p.requires_grad]
            update = torch.optim.Adam(chosen, rate, eps=1e-7, fused=True)  # 1e-7: Keras's
            for _ in range(self.epochs(epochs)):
                net.train()
                self.updates += fit_epoch(net, update, shuffled(augmented, self.labels, kept, 32), lambda: None)
        return predict(net, test)


RECIPES: dict[str, Callable[[Fit], Tensor]] = {
    "fastai 5": lambda fit: fit.fastai(5),
    "fastai 10": lambda fit: fit.fastai(10),
    "torchvision head": lambda fit: fit.torchvision("head"),
    "torchvision all": lambda fit: fit.torchvision("all"),
    "keras": lambda fit: fit.keras(),
}


def versions(*, threads: int) -> dict[str, str]:
    """What computes; sets the threads that do."""
    torch.set_num_threads(threads)
    return {"torch": torch.__version__, "torchvision": torchvision.__version__}


def train(*, recipe: str, root: str, weights: str, seed: int, scale: float) -> dict[str, Any]:
    """Trains by one of RECIPES on `root/train`, tests on `root/test`; all seconds from listing to the last answer."""
    began, cpu = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)
    fit = Fit(Path(root), weights, scale)
    predicted = RECIPES[recipe](fit)
    right = predicted == fit.folder.labels["test"]
    return {
        "names": [f"{f.parent.name}/{f.name}" for f in fit.folder.files["test"]],
        "right": "".join("01"[one] for one in right.tolist()),
        "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu,
        "decoding": fit.decoding, "updates": fit.updates,
    }  # fmt: skip


if __name__ == "__main__":
    answer_commands(versions, train)
