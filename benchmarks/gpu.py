"""Training steps of ResNets on one GPU, beside PyTorch's where it is installed. Data is synthetic: no input pipeline.

    python benchmarks/gpu.py --models resnet18,resnet50 --batch 256 --steps 20 --peer both --out gpu.json
    python benchmarks/gpu.py --models resnet18 --batch 4 --steps 1 --dtype float32 --peer none    (tries it on a CPU)

Needs jax, flax and optax; for the peer torch, and torchvision or timm. Two steps per network: `all` trains everything
with batch norm in train mode, `last_stage` trains layer4 and the head over a frozen rest in eval mode. Each row has a
process of its own, so that no peak of memory and no cache is another's. The row `deterministic` is ours again under
`deterministic=True`; what it takes longer than the row `tljax` is the price of the same bits every time. FLOPs are the
step's as written, counted by XLA before it optimizes; the other rows are held to the count of the first.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

GPU_FLAGS: tuple[str, ...] = ()
"""XLA flags for GPUs that were measured to help go here. Where the user has set XLA_FLAGS, that stands instead."""

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "V100": 125e12, "L4": 121e12, "T4": 65e12}
"""FLOP/s by the maker, dense, bfloat16 or else float16, of the SXM variant where there are several."""

SIDE, CLASSES, RATE, WARMUP, BLOCKS = 224, 1000, 1e-3, 3, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLANS = {"all": "all", "last_stage": "layer4,head"}
PEERS = {"none": (), "eager": (False,), "compiled": (True,), "both": (False, True)}
Row = dict[str, Any]


def our_step(
    arch: str, train: str, batch: int, dtype: str, *, bn: str = "", kept: bool = False
) -> tuple[Callable[..., Any], Any, dict[str, Any]]:
    """The step, its state and a batch on the device: the only place that knows how this repository builds them.

    With `kept`, the batch holds what the constant prefix puts out in place of images. `bn` is as in `make_plan`.
    """
    import jax
    import jax.numpy as jnp

    from tljax.data.augment import make_normalize
    from tljax.engine.steps import make_train_step
    from tljax.metrics.losses import make_loss
    from tljax.models import create_model, init_variables
    from tljax.run_dir.train_state import TrainState
    from tljax.transfer.optimizer import make_optimizer, make_schedule
    from tljax.transfer.plan import make_plan, prefix_end
    from tljax.transfer.population import Family

    model = create_model(arch, num_classes=CLASSES, dtype=dtype)
    variables = init_variables(model, jax.random.key(0))
    plan = make_plan(model, variables, train=train, bn=bn, lr=RATE)
    frozen_prefix_end = prefix_end(model, plan)
    tx = make_optimizer(plan, name="adam")
    normalize = make_normalize(MEAN, STD)
    step = make_train_step(
        model=model,
        plan=plan,
        families=[Family.single(tx, make_schedule("constant", steps=1))],
        loss=make_loss("softmax"),
        inputs=lambda keys, data: data["image"] if kept else normalize(data["image"]).astype(dtype),
        start_stage=frozen_prefix_end if kept else None,
        frozen_prefix_end=frozen_prefix_end,
        axis=None,
    )
    params = variables["params"]
    state = TrainState(jnp.int32(0), params, variables["batch_stats"], tx.init(params))
    image_key, label_key = jax.random.split(jax.random.key(1))
    data = {
        "image": jax.random.randint(image_key, (batch, SIDE, SIDE, 3), 0, 256, jnp.uint8),
        "size": jnp.full((batch, 2), SIDE, jnp.int32),
        "label": jax.random.randint(label_key, (batch,), 0, CLASSES),
        "index": jnp.arange(batch),
        "mask": jnp.ones(batch),
        "epoch": jnp.int32(0),
    }
    if kept:
        prefix = jax.jit(lambda v, x: model.apply(v, normalize(x).astype(dtype), stop_stage=frozen_prefix_end))
        data["image"] = prefix(variables, data["image"])
    return step, state, data


def flops_of(step: Callable[..., Any], *args: Any) -> float | None:
    """The step's FLOPs as written. XLA counts them for its CPU alone: on a GPU it sees calls of cuDNN instead."""
    import jax

    try:
        with jax.default_device(jax.devices("cpu")[0]):
            return jax.jit(step).lower(*jax.eval_shape(lambda *a: a, *args)).cost_analysis()["flops"]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return None


def timed(step: Callable[[], Any], wait: Callable[[], Any], steps: int) -> tuple[float, float]:
    """Seconds of the first step, and seconds per step: the median of blocks that wait only at their end."""

    def block(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        return time.perf_counter() - began

    first = block(1)
    block(WARMUP)
    return first, statistics.median(block(steps) for _ in range(BLOCKS)) / steps


def our_row(arch: str, plan: str, batch: int, steps: int, dtype: str, deterministic: bool) -> Row:
    """Measures this repository on the first device."""
    from tljax.core.xla_flags import make_deterministic

    if deterministic:
        make_deterministic()
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # the first step is to show what compiling costs
    step, state, data = our_step(arch, PLANS[plan], batch, dtype)
    key, metrics, device = jax.random.key(2), {}, jax.devices()[0]
    run = jax.jit(step, donate_argnums=0)

    def once() -> None:
        nonlocal state, metrics
        state, metrics = run(state, data, key)

    first, seconds = timed(once, lambda: jax.block_until_ready((state, metrics)), steps)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")  # a CPU has no such statistics
    loss = float(metrics["loss"]) / batch
    flops = flops_of(step, state, data, key)  # last: tracing belongs to the first step
    side = "deterministic" if deterministic else "tljax"
    return row(side, device.device_kind, f"jax {jax.__version__}", first, seconds, memory, loss) | {"flops": flops}


def peer_row(arch: str, plan: str, batch: int, steps: int, dtype: str, compiled: bool) -> Row:
    """Measures PyTorch on the first GPU, or on the CPU where there is none."""
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # as for JAX's cache
    import torch

    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32 under float32, as XLA has it
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    net = peer_network(arch).to(device, memory_format=torch.channels_last)
    if plan == "last_stage":
        net.eval().requires_grad_(False)
        for part in (net.layer4, net.fc):
            part.train().requires_grad_(True)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], RATE, fused=True)
    mean, std = (255 * torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    images = torch.randint(256, (batch, SIDE, SIDE, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    labels = torch.randint(CLASSES, (batch,), device=device)

    def loss_of(images: Any) -> Any:
        return torch.nn.functional.cross_entropy(net((images.float() - mean) / std), labels)

    loss: Any = torch.compile(loss_of) if compiled else loss_of
    value = torch.zeros(())

    def once() -> None:
        nonlocal value
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            value = loss(images)
        value.backward()
        optimizer.step()

    first, seconds = timed(once, torch.cuda.synchronize if cuda else lambda: None, steps)
    side, kind = "torch compiled" if compiled else "torch eager", torch.cuda.get_device_name() if cuda else "cpu"
    memory = torch.cuda.max_memory_allocated() if cuda else None
    version = f"torch {torch.__version__}, {type(net).__module__.partition('.')[0]}"
    return row(side, kind, version, first, seconds, memory, float(value.detach()))


def peer_network(arch: str) -> Any:
    """torchvision's network, or timm's where torchvision cannot be imported; both name their parts alike."""
    try:
        import torchvision

        return getattr(torchvision.models, arch)(num_classes=CLASSES)
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        import timm

        return timm.create_model(arch, num_classes=CLASSES)


def row(side: str, device: str, version: str, first: float, seconds: float, memory: int | None, loss: float) -> Row:
    """What both sides report of a measurement."""
    named = {"side": side, "device": device, "version": version, "loss": loss}
    return named | {"first_step_seconds": first, "step_seconds": seconds, "peak_bytes": memory}


def in_a_process(function: Callable[..., Row], *args: Any) -> Row:
    """The row from a fresh process, or what went wrong there."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    except Exception as error:
        side = {our_row: "tljax"}.get(function, "torch")
        return {"side": side, "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def peak_of(device: str) -> float | None:
    """The peak FLOP/s of a device kind, by a whole word of its name ('L40S' is no 'L4'); None if not known."""
    return next((PEAKS[word] for word in re.split(r"[\s\-_]+", device.upper()) if word in PEAKS), None)


def measured(args: argparse.Namespace, peers: tuple[bool, ...]) -> Iterator[Row]:
    """All rows, as they come."""
    for arch in args.models.split(","):
        for plan in PLANS:
            what = (arch, plan, args.batch, args.steps, args.dtype)
            flops = None
            ours = [(our_row, (deterministic,)) for deterministic in (False, True)]
            for function, more in [*ours, *((peer_row, (compiled,)) for compiled in peers)]:
                found = {"model": arch, "plan": plan} | in_a_process(function, *what, *more)
                flops = flops or found.get("flops")
                yield found if "error" in found else found | rates(found, flops, args)


def rates(found: Row, flops: float | None, args: argparse.Namespace) -> Row:
    """What follows from a row's seconds."""
    seconds, peak = found["step_seconds"], peak_of(found["device"]) if args.dtype == "bfloat16" else None
    utilisation = flops / seconds / peak if flops and peak else None
    return {"images_per_second": args.batch / seconds, "flops": flops, "utilisation": utilisation}


def line(found: Row) -> str:
    """A row of the printed table."""
    begin = f"{found['model']:10} {found['plan']:10} {found['side']:14}"
    if "error" in found:
        return f"{begin} {found['error']}"
    flops, share, peak = found["flops"], found["utilisation"], found["peak_bytes"]
    return (
        f"{begin} {found['images_per_second']:9,.1f} {1e3 * found['step_seconds']:9.2f} "
        f"{found['first_step_seconds']:8.1f} {f'{flops / 1e9:,.0f}' if flops else '-':>9} "
        f"{f'{share:.1%}' if share else '-':>6} {f'{peak / 2**30:.2f}' if peak else '-':>7}"
    )


def main() -> None:
    """Measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet18,resnet34,resnet50,resnet152")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="steps per block; the median of 5 blocks counts")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--peer", choices=tuple(PEERS), default="both")
    parser.add_argument("--out", type=Path, help="a JSON file, written anew after each row")
    args = parser.parse_args()
    absent = [name for name in ("torch", "torchvision", "timm") if importlib.util.find_spec(name) is None]
    possible = "torch" not in absent and len(absent) < 2
    if args.peer != "none" and absent:
        print(f"not installed: {', '.join(absent)}" + ("" if possible else "; the peer is left out"))
    columns = f"{'images/s':>9} {'ms/step':>9} {'first s':>8} {'GFLOP':>9} {'MFU':>6} {'GiB':>7}"
    print(f"{'model':10} {'plan':10} {'side':14} {columns}", flush=True)
    setting = vars(args) | {"out": str(args.out), "xla_flags": os.environ.get("XLA_FLAGS"), "not_installed": absent}
    rows: list[Row] = []
    for found in measured(args, PEERS[args.peer] if possible else ()):
        rows.append(found)
        print(line(found), flush=True)
        if args.out:
            args.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


# Before anything imports JAX, also in the processes started here, which import this file anew.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if GPU_FLAGS:
    os.environ.setdefault("XLA_FLAGS", " ".join(GPU_FLAGS))
if __name__ == "__main__":
    main()
