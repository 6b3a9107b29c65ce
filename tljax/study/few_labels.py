"""Few labels: report 001's pseudo-labels, other methods beside them, and a published comparison on four per class."""

from typing import Any

from tljax.study import seed001
from tljax.study.study import Cell, Claim, Study

ONCE: dict[str, Any] = {
    "semi.method": "pseudo_label", "semi.rounds": 1, "semi.teacher_epochs": 5, "epochs": 15, "semi.select": "all",
}  # fmt: skip
ROUNDS = {**ONCE, "semi.rounds": 3, "epochs": 5, "semi.select": "top"}
BASE = {**seed001.BASE, "transfer.train": seed001.BEST, "transfer.bn": "train", "data.stratify": False}
TABLE = {
    "1/99": ("0.4156", "0.4691", "0.4585"),
    "10/90": ("0.8193", "0.8526", "0.8681"),
    "50/50": ("0.8932", "0.8860", "0.89121"),
}
PROTOCOL = (
    "5 epochs for the teacher and for each student, 20 in all; labeling all at once: 5 and 15; the teacher alone: 20",
    "which networks these rows trained is not said: here the final model's layers, rate and batch norm",
    "students go on from their teacher's weights (the report's introduction trains 'the previous model')",
    "three rounds, a third of the unlabeled images more each time, the most confident ones: the report names no share",
)


def _rows(share: str, published: tuple[str, ...] = ()) -> tuple[Cell, ...]:
    labels, warm = {"data.labels": f"{share.partition('/')[0]}%"}, {"semi.start": "teacher"}
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("teacher", {}), ("student without iterations", {**ONCE, **warm}),
        ("student with iterations", {**ROUNDS, **warm}),
    )  # fmt: skip
    return tuple(
        Cell(f"{share}, {name}", {**labels, **settings}, published={"test": published[i]} if published else {})
        for i, (name, settings) in enumerate(kinds)
    )


SHARES = ("1%", "10%", "50%")


def _compared(share: str) -> Study:
    fours: dict[str, Any] = {"batch_size": 4, "epoch_steps": 0}
    warm = {**fours, "semi.start": "teacher"}
    once = {**ONCE, "semi.teacher_epochs": 15}
    rounds = {**once, "semi.rounds": 3, "semi.select": "top"}
    cells = (
        Cell("report's protocol: teacher", {**fours, "epochs": 20}),
        Cell("report's protocol: once", {**ONCE, **warm}),
        Cell("report's protocol: in rounds", {**ROUNDS, **warm}),
        Cell("labels only"),
        Cell("once", once),
        Cell("once, over a calibrated threshold", {**once, "semi.select": "threshold", "semi.calibrate": True}),
        Cell("in rounds", rounds),
        Cell("in rounds, soft labels, calibrated", {**rounds, "semi.targets": "soft", "semi.calibrate": True}),
        Cell("Mean Teacher", {"semi.method": "mean_teacher", "semi.strong_ops": 0, "semi.ramp_epochs": 4.0}),
        Cell("FixMatch", {"semi.method": "fixmatch"}),
        Cell("FlexMatch", {"semi.method": "flexmatch"}),
        Cell("Meta Pseudo Labels", {"semi.method": "meta_pseudo_labels"}),
        Cell("Meta Pseudo Labels, then the labels alone", {"model.weights": "cell:Meta Pseudo Labels",
                                                           "transfer.fresh": "", "optimizer.lr": 1e-4, "epochs": 5}),
        Cell("true labels", {"data.labels": "all"}),
    )  # fmt: skip
    return Study(
        name=f"001-few{share.rstrip('%')}",
        report="001",
        item=f"beyond Table 1, {share} of the labels",
        title="what unlabeled images give, by method",
        base={
            **{name: value for name, value in BASE.items() if name not in ("data.label", "data.val")},
            "data.source": "data:pacs-cartoon",
            "data.split": "40/10/50",
            "data.labels": share,
            "model.name": "squeezenet1_0",
            "transfer.train": "head",
            "transfer.bn": "trained:train,frozen:eval",
            "optimizer.lr": 1e-3,
            "batch_size": 32,
            "epochs": 15,
            "epoch_steps": 31,
            "cache.views": 8,
            "cache.seed": 0,
        },
        cells=cells,
        needs=("the cartoon domain of PACS (pacs-cartoon)", "ImageNet weights of SqueezeNet 1.0"),
        measures=("test", "validation", "given right", "updates"),
        seeds=10,
        baseline="labels only",
        differences=(
            "ours: the report has one seed on 37 breeds with ResNet-152",
            "report's protocol: batches of 4, 5 epochs a round, 20 in all, students going on from their teacher",
            "all other rows: batches of 32, 465 updates and 15 validations for each teacher, student, method and the "
            "true labels, students from ImageNet",
            "FixMatch and FlexMatch without Cutout and without the average of weights that their papers test; the weak "
            "view is this project's usual crop (8 to 100% of the area) and flip, which is not as weak as theirs",
            "Meta Pseudo Labels, then the labels alone: its paper fine-tunes the student so; here 155 updates at 1e-4",
            "eight fixed views of each image and kind, the same for all seeds and methods; a seed draws which images "
            "keep their labels, the fresh head and the order",
        ),
    )  # fmt: skip


TLL_ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("labels only", "82.2", {}),
    ("Pseudo-Label", "89.6", {"semi.method": "fixmatch", "semi.strong_ops": 0, "semi.threshold": 0.7}),
    ("FixMatch", "87.8", {"semi.method": "fixmatch", "semi.threshold": 0.7}),
    ("FlexMatch", "91.5", {"semi.method": "flexmatch"}),
    ("all labels", "93.2", {"data.labels": "all"}),
)
TLL = Study(
    name="tll-pets4",
    report="tll",
    item="Oxford pets, 4 labels per class",
    title="Transfer-Learning-Library's comparison with an ImageNet ResNet-50",
    base={
        "model.name": "resnet50",
        "data.source": "data:pets",
        "data.label": "breed",
        "data.split": "official",
        "data.val": 0.2,
        "data.labels": "4",
        "optimizer.name": "sgd",
        "optimizer.lr": 1e-3,
        "optimizer.lr_groups": ",".join(f"{group}:1e-4" for group in ("layer4", "layer3", "layer2", "layer1", "stem")),
        "optimizer.weight_decay": 5e-4,
        "optimizer.decay_all": True,
        "batch_size": 32,
        "transfer.train": "all",
        "epochs": 18,
        "epoch_steps": 90,
        "schedule.name": "cosine",
    },
    cells=tuple(Cell(name, settings, published={"test": f"{text}%"}) for name, text, settings in TLL_ROWS),
    needs=("Oxford-IIIT Pet with its official test part (pets)", "ImageNet weights of ResNet-50"),
    measures=("test", "validation", "given right"),
    test_size=seed001.TEST_SIZE,
    differences=(
        "its scripts keep the best of many test accuracies; here a fifth of the training part chooses the epoch",
        "its Nesterov momentum, decay of the rate by a power law, layer of 1,024 before the head and loss on strong "
        "views of labeled images are left out; the rate falls by a cosine",
        "the backbone at a tenth of the head's rate, as there",
        "1,620 updates; its scripts make 500 an epoch",
        "Pseudo-Label is its threshold on another draw of the same augmentation",
    ),
)

STUDIES = (
    Study(
        name="001-table1",
        report="001",
        item="Table 1",
        title="a teacher and its students, by how many labels there are",
        base=BASE,
        cells=tuple(cell for share, published in TABLE.items() for cell in _rows(share, published)),
        needs=seed001.NEEDS,
        measures=("test", "validation", "given right"),
        test_size=seed001.TEST_SIZE,
        differences=PROTOCOL,
        claims=tuple(
            Claim(text, f"{share}, {better}", tuple(f"{share}, {name}" for name in than), alike=alike)
            for share, text, better, than, alike in (
                (
                    "1/99",
                    "pseudo-labeling improves the performance if the amount of labeled data is limited",
                    "student with iterations",
                    ("teacher",),
                    False,
                ),
                (
                    "10/90",
                    "pseudo-labeling improves the performance if the amount of labeled data is limited",
                    "student with iterations",
                    ("teacher",),
                    False,
                ),
                (
                    "10/90",
                    "an iterative labeling approach performs equally well as a one-time labeling approach",
                    "student with iterations",
                    ("student without iterations",),
                    True,
                ),
            )
        ),
    ),
    *(
        Study(
            name=f"001-fig{figure}",
            report="001",
            item=f"Figure {figure}",
            title=f"validation accuracy over 20 epochs, {share} of the images labeled",
            base=BASE,
            cells=_rows(share),
            needs=seed001.NEEDS,
            measures=("validation", "test"),
            differences=(*PROTOCOL, "the figure has no numbers; its curves are those of Table 1's runs"),
        )
        for figure, share in ((5, "1/99"), (6, "10/90"), (7, "50/50"))
    ),
    *(_compared(share) for share in SHARES),
    TLL,
)
