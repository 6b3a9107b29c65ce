"""Report 003, "Analyzing Transfer Learning For Image Classification": frozen or not on four targets."""

from typing import Any

from tljax.study.study import TORCH_DEFAULT, Cell, Claim, Study

BASE: dict[str, Any] = {
    "data.split": "official",
    "optimizer.name": "adam",
    "epochs": 25,
    "schedule.name": "step",
    "schedule.step_epochs": 7.0,
    "schedule.factor": 0.1,
    "batch_size": 4,
    "select": "test",
    "transfer.bn": TORCH_DEFAULT,
}
RANDOM: dict[str, Any] = {"model.weights": "None", "transfer.allow_fresh_frozen": True}
DIFFERENCES = (
    "batch size 4, that of the PyTorch tutorial whose pipeline the report describes; it names none",
    "the report chooses the epoch by the images it tests on; that number is flagged, and an honest one, chosen on a "
    "fifth of the training images, stands beside it, so that training sees four fifths of them",
    "claims are asked of the report's measure; the answers of its epoch are not kept, so that rows are compared as if "
    "each had test images of its own, whose noise is larger",
    "the baseline is the same plan from random weights: frozen then means a frozen random trunk",
)
TARGETS = {  # by table: data set, in words, test images as percentages imply or the text says, accuracies, baselines
    1: (
        "ants-bees",
        "ants and bees, small and similar",
        153,
        ("0.947712", "0.810458", "0.8954", "0.947712", "0.954248", "0.751634", "0.921569", "0.941176"),
        ("0.6732", "0.712418", "0.620915", "0.784314", "0.647059", "0.699346", "0.666667", "0.673203"),
    ),
    2: (
        "cats-dogs-4000",
        "cats and dogs, large and similar",
        2000,
        ("0.982", "0.77", "0.982", "0.98", "0.984", "0.657", "0.982", "0.976"),
        ("0.636", "0.685", "0.601", "0.784", "0.629", "0.612", "0.612", "0.705"),
    ),
    3: (
        "glioma",
        "glioma tumour and none, small and different",
        200,
        ("0.715", "0.665", "0.72", "0.71", "0.73", "0.625", "0.73", "0.73"),
        ("0.525", "0.63", "0.585", "0.645", "0.59", "0.61", "0.575", "0.63"),
    ),
    4: (
        "cars-bikes",
        "cars and bikes, large and different",
        2000,
        ("0.993", "0.981", "0.984", "0.996", "0.995", "0.973", "0.993", "0.99"),
        ("0.755", "0.956", "0.693", "0.969", "0.676", "0.937", "0.625", "0.939"),
    ),
}


def _cells(accuracies: tuple[str, ...], baselines: tuple[str, ...]) -> tuple[Cell, ...]:
    """The eight conditions in the report's order, each transferred and from random weights."""
    cells = []
    conditions = [(b, lr, frozen) for b in ("18", "50") for lr in (1e-3, 1e-4) for frozen in (True, False)]
    for (backbone, lr, frozen), transferred, scratch in zip(conditions, accuracies, baselines, strict=True):
        name = f"{'frozen' if frozen else 'all trained'}, ResNet-{backbone}, {lr:g}"
        settings: dict[str, Any] = {
            "model.name": f"resnet{backbone}",
            "optimizer.lr": lr,
            "transfer.train": "head" if frozen else "all",
        }
        cells.append(Cell(name, settings, published={"best by test": transferred}))
        cells.append(Cell(f"{name}, no transfer", settings | RANDOM, published={"best by test": scratch}))
    return tuple(cells)


def _study(table: int) -> Study:
    data, words, size, accuracies, baselines = TARGETS[table]
    cells = _cells(accuracies, baselines)
    transferred = [cell.name for cell in cells if not cell.name.endswith("no transfer")]
    claims = [
        Claim(
            "transfer learning performed better than no transfer under every condition",
            name,
            (f"{name}, no transfer",),
            "best by test",
        )
        for name in transferred
    ]
    if table in (2, 3):
        claims += [
            Claim(
                "layer freezing is effective on this target",
                name,
                (name.replace("frozen", "all trained"),),
                "best by test",
            )
            for name in transferred
            if name.startswith("frozen")
        ]
    if table in (1, 2):
        claims += [
            Claim(
                "the best learning rate without freezing is lower where source and target are similar",
                f"all trained, {backbone}, 0.0001",
                (f"all trained, {backbone}, 0.001",),
                "best by test",
            )
            for backbone in ("ResNet-18", "ResNet-50")
        ]
    return Study(
        name=f"003-table{table}",
        report="003",
        item=f"Table {table}",
        title=words,
        base={**BASE, "data.source": f"data:{data}"},
        cells=cells,
        needs=(f"a folder with train/ and test/ ({data})", "ImageNet weights of ResNet-18 and -50"),
        measures=("best by test", "test"),
        claims=tuple(claims),
        test_size=size,
        differences=DIFFERENCES,
        transfers=tuple((name, f"{name}, no transfer") for name in transferred),
    )


def _summary() -> Study:
    """The best of each target's conditions with transfer and without; its runs are those of the tables."""
    cells, pairs = [], []
    search = {"model.name": ("resnet18", "resnet50"), "optimizer.lr": (1e-3, 1e-4), "transfer.train": ("head", "all")}
    for data, words, _, *published in TARGETS.values():
        pairs.append((words, f"{words}; no transfer"))
        for name, settings, texts in zip(pairs[-1], ({}, RANDOM), published, strict=True):
            best = max(texts, key=float)
            cells.append(Cell(name, {"data.source": f"data:{data}", **settings}, search, {"best by test": best}))
    return Study(
        name="003-summary",
        report="003",
        item="Figures 1 and 2",
        title="small or large, similar or different targets: what transfer gives each",
        base=BASE,
        cells=tuple(cells),
        needs=tuple(f"a folder with train/ and test/ ({data})" for data, *_ in TARGETS.values()),
        measures=("best by test", "test", "validation"),
        differences=(
            *DIFFERENCES,
            "ours is the condition, of the eight of each target, that validation prefers; the published number is the "
            "highest of the eight",
        ),
        transfers=tuple(pairs),
    )


STUDIES = (*(_study(table) for table in TARGETS), _summary())
