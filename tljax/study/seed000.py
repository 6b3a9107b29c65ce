"""Report 000, "Exploring transfer learning": ResNet-34 on Oxford-IIIT Pet."""

from tljax.study.study import TORCH_DEFAULT, Cell, Claim, Study

GROUPS = ("head", "layer4", "layer3", "layer2", "layer1")
SQUEEZENET_GROUPS = ("head", "fire9", "fire8", "fire7", "fire6")
PLAIN = {"augment.crop": "center", "augment.flip": False}
AUGMENTED = {"augment.crop": "random_resized", "augment.flip": True, "augment.rotation": 10.0}
LAST_TWO = "layer4,head"
BEST_RATE = 7.222221756819636e-05
BASE = {
    "model.name": "resnet34",
    "data.source": "data:pets",
    "data.split": "70/20/10",
    "optimizer.name": "adam",
    "optimizer.lr": 1e-4,
    "epochs": 5,
    "select": "last",
    "transfer.bn": TORCH_DEFAULT,
    "data.label": "breed",
    **PLAIN,
}
NEEDS = ("Oxford-IIIT Pet, both official parts (pets)", "ImageNet weights of ResNet-34")
TEST_SIZE = 736  # the smallest number of which the percentages of its Tables 2 to 4 are whole images
DIFFERENCES = (
    "batch size 32, where the report names none",
    "split by class; the report does not say how it drew its 70/20/10",
    "frozen layers are left in PyTorch's train() mode, its default: they normalize by the batch and update their "
    "statistics",
)


NAMES = (
    "final layer only",
    "final and second to last",
    "final to third to last",
    "final to fourth to last",
    "final to fifth to last",
)
TWO_ARE_BEST = Claim(
    "the best test accuracy comes from the final layer and the second to last layer", NAMES[1], (NAMES[0], *NAMES[2:])
)
TABLE_2 = ("90.489 %", "91.576 %", "91.033 %", "90.625 %", "86.141 %")
TABLE_3 = ("79.076 %", "87.228 %", "80.707 %", "65.897 %", "70.924 %")
TABLE_4 = {
    4.999999873689376e-05: "91.712 %",
    6.111110997153446e-05: "92.799 %",
    BEST_RATE: "92.799 %",
    8.333333244081587e-05: "91.848 %",
    9.444444731343538e-05: "91.848 %",
    0.00010555556218605489: "92.391 %",
    0.0001166666770586744: "90.625 %",
    0.0001277777737937868: "91.984 %",
    0.00013888889225199819: "91.576 %",
    0.0001500000071246177: "89.402 %",
}


def _layers(rate: float, published: tuple[str, ...], groups: tuple[str, ...] = GROUPS) -> tuple[Cell, ...]:
    return tuple(
        Cell(name, {"transfer.train": ",".join(groups[:i]), "optimizer.lr": rate}, published={"test": text})
        for i, (name, text) in enumerate(zip(NAMES, published, strict=True), 1)
    )


STUDIES = (
    Study(
        name="000-table1",
        report="000",
        item="Table 1",
        title="cat or dog, epoch by epoch",
        base={**BASE, "data.label": "species", "epochs": 3, "transfer.train": "head"},
        cells=(
            Cell(
                "final layer",
                published={
                    "test": "99.593 %",
                    "validation@1": "98.775 %",
                    "validation@2": "97.617 %",
                    "validation@3": "99.319 %",
                },
            ),
        ),
        measures=("test", "validation@1", "validation@2", "validation@3"),
        needs=NEEDS,
        test_size=TEST_SIZE,
        differences=(
            *DIFFERENCES,
            "the abstract gives the test accuracy as 99.319%, the text as 99.593%, and Table 1 has "
            "99.319% as the validation accuracy of the third epoch; 99.593% is no whole number of 736 images (733 are "
            "99.592%)",
        ),
    ),
    Study(
        name="000-table2",
        report="000",
        item="Table 2",
        title="how many layers, from the top, at 1e-4",
        base=BASE,
        cells=_layers(1e-4, TABLE_2),
        needs=NEEDS,
        test_size=TEST_SIZE,
        differences=(
            *DIFFERENCES,
            "the first row is the baseline of section 3.2; the table itself begins with two layers",
        ),
        claims=(TWO_ARE_BEST,),
    ),
    Study(
        name="000-table2-squeeze",
        report="000",
        item="Table 2",
        title="the same question of SqueezeNet's groups",
        base={**BASE, "model.name": "squeezenet1_0"},
        cells=_layers(1e-4, TABLE_2, SQUEEZENET_GROUPS),
        needs=(NEEDS[0], "ImageNet weights of SqueezeNet 1.0"),
        test_size=TEST_SIZE,
        differences=(
            *DIFFERENCES[:2],
            "SqueezeNet 1.0 in place of ResNet-34: a layer is one fire module, far less than a stage of a ResNet, and "
            "there is no batch norm",
        ),
        claims=(TWO_ARE_BEST,),
    ),
    Study(
        name="000-table3",
        report="000",
        item="Table 3",
        title="how many layers, from the top, at 1e-3",
        base=BASE,
        cells=_layers(1e-3, TABLE_3),
        needs=NEEDS,
        test_size=TEST_SIZE,
        differences=DIFFERENCES,
        claims=(TWO_ARE_BEST,),
    ),
    Study(
        name="000-table4",
        report="000",
        item="Table 4",
        title="ten learning rates for the last two layers",
        base={**BASE, "transfer.train": LAST_TWO, "transfer.bn": "trained:train,frozen:eval"},
        cells=tuple(
            Cell(f"{rate:.3g}", {"optimizer.lr": rate}, published={"test": text}) for rate, text in TABLE_4.items()
        ),
        needs=NEEDS,
        test_size=TEST_SIZE,
        differences=(
            *DIFFERENCES[:2],
            "frozen layers evaluate, so that the ten rates share their outputs; 5 epochs, where the report names none",
        ),
        claims=(
            Claim(
                "a learning rate around 7.2e-5 yields the best test accuracy",
                f"{BEST_RATE:.3g}",
                tuple(f"{rate:.3g}" for rate in TABLE_4 if rate != BEST_RATE),
            ),
        ),
    ),
    Study(
        name="000-augmentation",
        report="000",
        item="section 3.2.2",
        title="augmentation or none",
        base={**BASE, "transfer.train": LAST_TWO, "optimizer.lr": 7.2e-5, "epochs": 3},
        cells=(
            Cell("none", published={}, differences=("the report compares with Table 4's row of the same rate",)),
            Cell("flip, rotation, resized crop", AUGMENTED, published={"test": "94.429 %"}),
        ),
        needs=NEEDS,
        test_size=TEST_SIZE,
        differences=DIFFERENCES,
        claims=(
            Claim(
                "data augmentation significantly improved the test accuracy", "flip, rotation, resized crop", ("none",)
            ),
        ),
    ),
    Study(
        name="000-batchnorm",
        report="000",
        item="section 3.2.3",
        title="batch norm trained or left",
        base={**BASE, **AUGMENTED, "transfer.train": LAST_TWO, "optimizer.lr": 7.2e-5, "epochs": 3},
        cells=(
            Cell("trained and updated", published={"test": "94.429 %"}),
            Cell("left as it was", {"transfer.bn": "eval"}, published={"test": "93.207 %"}),
        ),
        needs=NEEDS,
        test_size=TEST_SIZE,
        differences=DIFFERENCES,
        claims=(
            Claim(
                "there is an advantage in fine-tuning batch-norm parameters and updating mean and deviation",
                "trained and updated",
                ("left as it was",),
            ),
        ),
    ),
    Study(
        name="000-schedule",
        report="000",
        item="section 4",
        title="a schedule in place of fixed epochs",
        base={**BASE, **AUGMENTED, "transfer.train": LAST_TWO, "optimizer.lr": 7.2e-5, "epochs": 10},
        cells=(
            Cell("3 epochs, constant", {"epochs": 3}),
            Cell("10 epochs, constant"),
            Cell("10 epochs, cosine", {"schedule.name": "cosine", "schedule.warmup_epochs": 0.5}),
            Cell("10 epochs, best by validation", {"select": "validation"}),
        ),
        needs=NEEDS,
        differences=(*DIFFERENCES, "the report asks the question and has no numbers"),
        claims=(
            Claim(
                "a schedule could prevent the overfitting that begins after about 4 epochs",
                "10 epochs, cosine",
                ("10 epochs, constant",),
            ),
        ),
    ),
)
