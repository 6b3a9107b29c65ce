"""What a temperature that is fitted on few validation images is worth on all others.

python benchmarks/calibration.py --data ../shared/data --out calibration.json

Each set is drawn from real data: 10 to 60 images per class, four fifths of which train a new head on features that are
computed once; the others choose the epoch and fit the temperature. Log loss and calibration error are of all images
that were not drawn: as the network says it, at the temperature of the highest likelihood, and at what `fit_temperature`
gives. The prior of `fit_temperature` was chosen on draws of `--seed 100` and 101; the figures told are of `--seed 0`.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tljax.core.xla_flags import tune_cpu

tune_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from rich.console import Console  # noqa: E402
from scipy.optimize import minimize_scalar  # noqa: E402

from tljax.core import shared_cache  # noqa: E402
from tljax.core.process import keep_compilations, quiet_libraries  # noqa: E402
from tljax.distributed import parallel  # noqa: E402
from tljax.engine.input_pipeline import predict_all  # noqa: E402
from tljax.metrics.calibration import (  # noqa: E402
    fit_temperature,
    log_probabilities,
    reliability,
)
from tljax.models import ForwardContext  # noqa: E402
from tljax.settings.dotted import with_fields  # noqa: E402
from tljax.settings.fields import get_config  # noqa: E402
from tljax.suggest import trial  # noqa: E402
from tljax.train.setup import prepare  # noqa: E402

SIZES = (10, 20, 30, 45, 60)  # images per class
MOST = 130  # of a class, drawn ones included
RATES, EPOCHS, BATCH = (1e-3, 3e-3), 30, 32
HOW = ("raw", "likelihood", "fit")
DATA = {
    "pacs_cartoon": "pacs_cartoon/{}/*.jpg", "oxford_pets_3breeds": "oxford_pets_3breeds/images/{}_*.jpg",
    "ants_bees": "ants_bees/*/{}/*.jpg", "cats_dogs": "cats_dogs/*/{}/*.jpg",
}  # fmt: skip


def gather(data: Path, name: str, folder: Path) -> Path:
    """A folder of links, `CLASS/*.jpg`, to at most `MOST` images of each class."""
    root, pattern = folder / name, DATA[name]
    if name == "oxford_pets_3breeds":
        classes = {path.name.rpartition("_")[0] for path in (data / name / "images").iterdir()}
    else:
        classes = {path.name for path in data.glob(pattern[: pattern.index("{")] + "*") if path.is_dir()}
    for cls in sorted(classes):
        (root / cls).mkdir(parents=True)
        files = sorted(data.glob(pattern.format(cls)))
        for i in np.random.default_rng(0).permutation(len(files))[:MOST]:
            (root / cls / f"{files[i].parent.parent.name}-{files[i].name}").symlink_to(files[i])
    return root


def features_of(root: Path, backbone, folder: Path):
    """What reaches the head of each image, float16 `[N, ...]`; labels `[N]`; the network and its fresh variables."""
    config = get_config()
    config.data.source, config.data.split, config.pictures = f"folder:{root}", "98/1/1", False
    config = with_fields(config, trial.network_fields(config, backbone))
    shared_cache.begin_run()
    x, variables = prepare(config, folder, Console(quiet=True))
    feed = x.feed(np.arange(len(x.data.source)), once=True)
    step = parallel.eval_step(x.forward_step(0, feed, stop_stage="head"))
    found = predict_all(step, feed, parallel.replicate(variables), jax.random.key(0), x.replicas)
    return np.concatenate([np.asarray(part, np.float16) for part in found]), x.data.source.labels, x.model, variables


def draw(labels: np.ndarray, per_class: int, seed: int):
    """Rows that train, rows that validate (a fifth of each class), and all others."""
    rng, train, val = np.random.default_rng(seed), [], []
    for c in range(labels.max() + 1):
        mine = rng.permutation(np.flatnonzero(labels == c))[:per_class]
        val += mine[: max(1, per_class // 5)].tolist()
        train += mine[max(1, per_class // 5) :].tolist()
    return np.array(train), np.array(val), np.setdiff1d(np.arange(len(labels)), [*train, *val])


def head_of(model, variables):
    """(rate -> initial state), one update, and logits of any features: the network's own head, by Adam."""
    fresh = {name: v for name, v in variables["params"].items() if name in ("classifier", "fc", "classifier_1")}
    rest = {name: v for name, v in variables["params"].items() if name not in fresh}

    def apply(params, features, keys=None):
        whole = variables | {"params": rest | params}
        return model.apply(whole, features.astype(jnp.float32), ForwardContext(keys=keys), start_stage="head")

    @jax.jit
    def update(params, opt, rate, features, labels, real, key):
        def loss(params):
            losses = optax.softmax_cross_entropy_with_integer_labels(
                apply(params, features, jax.random.split(key, BATCH)), labels
            )
            return (losses * real).sum() / real.sum()

        grads, opt = optax.scale_by_adam().update(jax.grad(loss)(params), opt)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), opt

    forward = jax.jit(apply)

    def logits(params, features):
        parts = []
        for start in range(0, len(features), BATCH):
            part = features[start : start + BATCH]
            padded = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), part.dtype)])
            parts.append(np.asarray(forward(params, padded))[: len(part)])
        return np.concatenate(parts)

    return fresh, update, logits


def trained(head, features, labels, train, val, rate: float, seed: int):
    """The head's parameters at the epoch with the best validation accuracy, of equals the lowest loss."""
    params, update, logits = head
    opt, best = optax.scale_by_adam().init(params), None
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    for _ in range(EPOCHS):
        order = rng.permutation(train)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            real = np.arange(BATCH) < len(rows)
            rows = np.resize(rows, BATCH)
            key, own = jax.random.split(key)
            params, opt = update(params, opt, rate, features[rows], labels[rows], real.astype(np.float32), own)
        found = logits(params, features[val])
        merit = ((found.argmax(1) == labels[val]).mean(), -losses_of(found, labels[val], 1.0).mean())
        if best is None or merit > best[0]:
            best = merit, params
    return best[1]


def losses_of(logits, labels, temperature: float) -> np.ndarray:
    return -log_probabilities(logits, temperature)[np.arange(len(labels)), labels]


def likeliest(logits, labels) -> float:
    """The temperature of the highest likelihood, from 1/20 to 20, without a prior."""

    def loss(log_t: float) -> float:
        return float(losses_of(logits, labels, np.exp(log_t)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded").x))


def compare(val, rest) -> dict:
    """What the temperatures that validation gives are worth on all other images."""
    fitted, (logits, labels) = fit_temperature(*val), rest
    told = fitted.as_dict() | {"likeliest": likeliest(*val), "rest": len(labels)}
    raw = losses_of(logits, labels, 1.0)
    for name, t in (("raw", 1.0), ("likelihood", told["likeliest"]), ("fit", fitted.temperature)):
        worse = losses_of(logits, labels, t) - raw
        error = float(worse.std(ddof=1) / np.sqrt(len(worse)))
        told[f"nll_{name}"], told[f"ece_{name}"] = float((raw + worse).mean()), reliability(logits, labels, t)["ece"]
        told[f"worse_{name}"] = bool(worse.mean() > 2 * error)
    return told


def collect(data: Path, name: str, folder: Path, seed: int):
    """What was found on every set of one source."""
    backbones = trial.read_backbones(
        f"squeezenet1_0={data}/squeezenet1_0-imagenet.pth,resnet18:layer3={data}/resnet18_to_layer3-imagenet.pth"
    )
    root = gather(data, name, folder)
    for backbone in backbones:
        features, labels, model, variables = features_of(root, backbone, folder)
        head = head_of(model, variables)
        for k, per_class in enumerate(SIZES):
            train, val, rest = draw(labels, per_class, 10 * seed + k)
            for rate in RATES:
                params = trained(head, features, labels, train, val, rate, seed)
                parts = [(head[2](params, features[rows]), labels[rows]) for rows in (val, rest)]
                yield {"data": name, "backbone": str(backbone), "per_class": per_class, "rate": rate} | compare(*parts)


def table(rows) -> str:
    """Means over the sets of each network and rate, and how many sets got worse by more than two standard errors."""
    heads = ["network", "rate", "sets", "scaled", *(f"{part} {how}" for part in ("NLL", "ECE") for how in HOW)]
    heads += [f"worse, {how}" for how in HOW[1:]]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    groups = [(b, r) for b in dict.fromkeys(row["backbone"] for row in rows) for r in RATES] + [("all", 0.0)]
    for backbone, rate in groups:
        some = [row for row in rows if backbone == "all" or (row["backbone"], row["rate"]) == (backbone, rate)]
        cells = [backbone, f"{rate:g}" if rate else "", str(len(some)), str(sum(not row["raw"] for row in some))]
        for part, form in (("nll", ".3f"), ("ece", ".1%")):
            cells += [format(np.mean([row[f"{part}_{how}"] for row in some]), form) for how in HOW]
        cells += [str(sum(row[f"worse_{how}"] for row in some)) for how in HOW[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TLJAX_SHARED", "../shared")) / "data")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON; sources that are there already are not run again"
    )
    parser.add_argument("--only", action="append", default=[], choices=list(DATA), help="a source; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    args = parser.parse_args()
    quiet_libraries()
    keep_compilations(small=True)
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for name in args.only or DATA:
        if name not in {row["data"] for row in rows}:
            with tempfile.TemporaryDirectory() as place:
                rows += list(collect(args.data.resolve(), name, Path(place), args.seed))
            args.out.write_text(json.dumps(rows, indent=1))
    print(table(rows))


main()
