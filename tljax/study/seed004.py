"""Report 004, "Transfer Learning in CNNs": the Keras tutorial's network, Stanford Dogs to cats vs dogs."""

from typing import Any

from tljax.study.study import OF_CELL, Cell, Claim, Study

DOGS, SCRATCH = "dogs120-base", "dogs-cats-base"
CONVOLUTIONS = (
    "conv1",
    "sep1a",
    "sep1b",
    "short1",
    "sep2a",
    "sep2b",
    "short2",
    "sep3a",
    "sep3b",
    "short3",
    "sep4",
)
"""In the order in which the network makes them; separable ones and the shortcuts' count."""
BASE: dict[str, Any] = {
    "model.name": "mini_xception", "data.source": "data:cats-vs-dogs", "data.split": "80/20", "data.resize": 180,
    "data.size": 180, "data.mean": (0.0, 0.0, 0.0), "data.std": (1.0, 1.0, 1.0), "loss.name": "sigmoid",
    "optimizer.name": "adam", "optimizer.lr": 1e-4, "batch_size": 64, "epochs": 25, "augment.crop": "center",
    "augment.flip": True, "augment.rotation": 36.0,
}  # fmt: skip
PRETRAINING = {"data.source": "data:stanford-dogs", "loss.name": "softmax", "model.weights": "None"}
ALTERED = {  # the report's name of an alteration: convolutions that start again
    "only output": (),
    "3-first-conv2d & output": CONVOLUTIONS[:3],
    "2-last-conv2d & output": CONVOLUTIONS[-2:],
}
PUBLISHED = {
    (True, "only output"): "0.7638", (False, "only output"): "0.9244",
    (True, "3-first-conv2d & output"): "0.8678", (False, "3-first-conv2d & output"): "0.9180",
    (True, "2-last-conv2d & output"): "0.8964", (False, "2-last-conv2d & output"): "0.9297",
}  # fmt: skip
TEST_SIZE, DOGS_TEST_SIZE = 4682, 4116  # a fifth of its 23,412 cats and dogs, and of Stanford's 20,580 dogs
DIFFERENCES = (
    "the report's test set is its validation set: the numbers are the best validation accuracies among epochs",
    "25 epochs and the augmentation of the tutorial (flips, rotation of up to 36 degrees), where the report names "
    "none; its figure shows more than 10 epochs",
    "pictures keep their proportions: short side 180, central square; the tutorial squeezes them to 180 x 180",
    "which images were dropped as broken is not known in detail: ours drop what cannot be read",
    "frozen layers evaluate, which is what `trainable = False` means in Keras for batch norm",
    "'convolution' counts separable ones and the 1x1 of the shortcuts: the first three are conv1, sep1a, sep1b, the "
    "last two short3, sep4; a batch norm keeps its transferred parameters",
)


def _transferred(name: str, frozen: bool) -> Cell:
    fresh = ",".join([*ALTERED[name], "head"])
    return Cell(
        f"{name}, {'frozen' if frozen else 'trainable'}",
        {
            "model.weights": OF_CELL + DOGS, "transfer.fresh": fresh, "transfer.train": fresh if frozen else "all",
            "transfer.bn": "eval" if frozen else "train",
        },
        published={"validation": PUBLISHED[frozen, name]},
    )  # fmt: skip


def _head_first(name: str) -> Cell:
    fresh = ",".join([*ALTERED[name], "head"])
    return Cell(
        f"{name}, the output first",
        {
            "model.weights": OF_CELL + DOGS, "transfer.fresh": fresh, "transfer.phases": f"{fresh}@3;all",
            "transfer.bn": "trained:train,frozen:eval",
        },
        differences=("an arm of ours: 3 epochs of what is fresh before all trains, against the early drop that the "
                     "report explains by the random output's large gradients",),
    )  # fmt: skip


TRANSFERRED = tuple(_transferred(name, frozen) for name in ALTERED for frozen in (True, False))

STUDIES = (
    Study(
        name="004-table2",
        report="004",
        item="Table 2",
        title="what starts again, frozen or not; best validation accuracies",
        base=BASE,
        cells=(
            Cell(
                DOGS,
                {**PRETRAINING, "transfer.train": "all"},
                published={"validation": "0.1407"},
                test_size=DOGS_TEST_SIZE,
            ),
            Cell(SCRATCH, {"model.weights": "None", "transfer.train": "all"}, published={"validation": "0.9178"}),
            *TRANSFERRED,
            _head_first("only output"),
        ),
        needs=("Stanford Dogs (stanford-dogs)", "cats vs dogs (cats-vs-dogs)"),
        measures=("validation",),
        differences=DIFFERENCES,
        transfers=tuple((cell.name, SCRATCH) for cell in TRANSFERRED),
        test_size=TEST_SIZE,
        claims=(
            Claim(
                "so they do among the frozen ones",
                "2-last-conv2d & output, frozen",
                ("only output, frozen", "3-first-conv2d & output, frozen"),
                "validation",
            ),
            Claim(
                "the best performing models re-initialize the last two convolutions and the output",
                "2-last-conv2d & output, trainable",
                tuple(cell.name for cell in TRANSFERRED if cell.name != "2-last-conv2d & output, trainable"),
                "validation",
            ),
        ),
    ),
    Study(
        name="004-fig1",
        report="004",
        item="Figure 1",
        title="the first epoch with transferred weights and without; curves",
        base=BASE,
        cells=(
            Cell(DOGS, {**PRETRAINING, "transfer.train": "all"}),
            Cell(SCRATCH, {"model.weights": "None", "transfer.train": "all"}),
            *(Cell(cell.name, cell.settings) for cell in TRANSFERRED),
        ),
        needs=("Stanford Dogs (stanford-dogs)", "cats vs dogs (cats-vs-dogs)"),
        measures=("validation@1", "validation"),
        smooth=5,
        differences=DIFFERENCES,
        claims=tuple(
            Claim(
                "the initial accuracy is better in all six experiments than in the baseline",
                cell.name,
                (SCRATCH,),
                "validation@1",
            )
            for cell in TRANSFERRED
        ),
    ),
)
