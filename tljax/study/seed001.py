"""Report 001, "Transfer Learning - A Deep Learning Approach": ResNet-152 on Oxford-IIIT Pet, batches of 4."""

from typing import Any

from tljax.study.study import TORCH_DEFAULT, Cell, Claim, Study

BEST = "layer4,layer2,layer1,head"
BASE: dict[str, Any] = {
    "model.name": "resnet152",
    "data.source": "data:pets",
    "data.label": "breed",
    "data.split": "official",
    "data.val": 0.2,
    "optimizer.name": "adam",
    "optimizer.lr": 5e-5,
    "batch_size": 4,
    "epochs": 20,
    "transfer.train": "head",
    "transfer.bn": TORCH_DEFAULT,
}
NEEDS = ("Oxford-IIIT Pet with its official test part (pets)", "ImageNet weights of ResNet-152")
TEST_SIZE = 3669  # the official test part
DIFFERENCES = (
    "20 epochs, as in the report's figures 5 to 7; elsewhere it names none",
    "frozen layers are left in PyTorch's train() mode unless a row says otherwise",
    "resized crops and flips throughout, as in the report's final model, unless a row says otherwise",
)
RATES = (1e-3, 5e-4, 1e-4, 5e-5, 1e-5)
GROUPS = {
    "fully connected": "head",
    "fully connected, layer4": "layer4,head",
    "fully connected, layer3": "layer3,head",
    "fully connected, layer4, layer3": "layer4,layer3,head",
    "fully connected, layer4, layer2, layer1": BEST,
    "all layers": "all",
}
LAYERS = ("head", "layer4", "layer3", "layer2", "layer1", "stem")


def _norms(count: int) -> str:
    """Batch norms unfrozen in so many layers from the top, all others evaluating."""
    return ",".join(["all:eval", *(f"{name}:train" for name in LAYERS[1 : count + 1])])


STUDIES = (
    Study(
        name="001-fig1",
        report="001",
        item="Figure 1",
        title="a coarse search for the learning rate",
        base=BASE,
        cells=tuple(Cell(f"{rate:g}", {"optimizer.lr": rate}) for rate in RATES),
        needs=NEEDS,
        measures=("validation", "test"),
        differences=(*DIFFERENCES, "the figure has no numbers; the rates around its 5e-5 are ours"),
        claims=(
            Claim(
                "a learning rate of 0.00005 was found through a coarse search",
                "5e-05",
                tuple(f"{rate:g}" for rate in RATES if rate != 5e-5),
                "validation",
            ),
        ),
    ),
    Study(
        name="001-fig3",
        report="001",
        item="Figure 3",
        title="combinations of trained layers",
        base=BASE,
        cells=tuple(Cell(name, {"transfer.train": groups}) for name, groups in GROUPS.items()),
        needs=NEEDS,
        measures=("validation", "test"),
        differences=(
            *DIFFERENCES,
            "the figure has no numbers, and the report numbers no Figure 2 among its captions: two "
            "figures share the number 3",
        ),
        claims=(
            Claim(
                "the best combination was layer4, layer2, layer1 and the fully connected layer",
                "fully connected, layer4, layer2, layer1",
                tuple(name for name, groups in GROUPS.items() if groups != BEST),
                "validation",
            ),
            Claim(
                "fine-tuning layer3 with the fully connected layer becomes slower",
                "fully connected, layer4",
                ("fully connected, layer3",),
                "validation",
            ),
        ),
    ),
    Study(
        name="001-fig2",
        report="001",
        item="Figure 2",
        title="batch norms unfrozen layer by layer",
        base={**BASE, "transfer.train": "head"},
        cells=(
            Cell("none", {"transfer.bn": "eval"}),
            *(Cell(f"from the top to {LAYERS[i]}", {"transfer.bn": _norms(i)}) for i in range(1, len(LAYERS))),
        ),
        needs=NEEDS,
        measures=("validation@1", "validation", "test"),
        differences=(*DIFFERENCES, "the figure has no numbers; its caption in the text says Figure 3"),
        claims=(
            Claim(
                "having any kind of batch norm results in faster convergence",
                "from the top to stem",
                ("none",),
                "validation@1",
            ),
        ),
    ),
    Study(
        name="001-augmentation",
        report="001",
        item="section 4.1",
        title="crops, turns, brightness, heads, copies",
        base={**BASE, "transfer.train": BEST},
        cells=(
            Cell("none", {"augment.crop": "center", "augment.flip": False}),
            Cell("resized crop and flip"),
            Cell(
                "resized crop, flip, rotation",
                {"augment.rotation": 10.0},
                differences=("10 degrees; the report names no angle",),
            ),
            Cell(
                "resized crop, flip, brightness",
                {"augment.brightness": 0.2},
                differences=("factors of 0.8 to 1.2; the report names none",),
            ),
            Cell(
                "plain images and a resized, flipped copy of each",
                {"protocol.augmented_copies": 1},
                differences=("one copy of each image; the report does not say how many it added",),
            ),
            Cell(
                "head boxes, resized crop and flip",
                {"data.boxes": True},
                differences=("training images alone are cut: the official test part has no boxes",),
            ),
        ),
        needs=NEEDS,
        measures=("test", "validation"),
        differences=DIFFERENCES,
        claims=(
            Claim(
                "rotating did not yield better performance", "resized crop and flip", ("resized crop, flip, rotation",)
            ),
            Claim(
                "changing the brightness did not yield better performance",
                "resized crop and flip",
                ("resized crop, flip, brightness",),
            ),
            Claim(
                "head crops did not yield better results",
                "resized crop and flip",
                ("head boxes, resized crop and flip",),
            ),
            Claim(
                "with added augmented samples the performance worsened a little",
                "resized crop and flip",
                ("plain images and a resized, flipped copy of each",),
            ),
            Claim("data augmentation improved the model a little", "resized crop and flip", ("none",)),
        ),
    ),
    Study(
        name="001-backbones",
        report="001",
        item="section 4",
        title="ResNet-18, -34, -50 and -152",
        base={**BASE, "transfer.train": BEST},
        cells=tuple(
            Cell(
                f"ResNet-{depth}", {"model.name": f"resnet{depth}"}, published={"test": "93.5%"} if depth == 152 else {}
            )
            for depth in (18, 34, 50, 152)
        ),
        needs=(NEEDS[0], "ImageNet weights of ResNet-18, -34, -50, -152"),
        test_size=TEST_SIZE,
        differences=(
            *DIFFERENCES,
            "the 93.5% are of the report's final model, for which batch norm was trained in all layers, it says, and "
            "the rate lowered, without naming it; here the rate is 5e-5 and batch norm PyTorch's default",
        ),
        claims=(
            Claim(
                "ResNet-18, -34 and -50 proved to perform worse than ResNet-152",
                "ResNet-152",
                ("ResNet-18", "ResNet-34", "ResNet-50"),
            ),
        ),
    ),
    Study(
        name="001-binary",
        report="001",
        item="section 4",
        title="cat or dog",
        base={**BASE, "data.label": "species"},
        cells=(Cell("final layer", published={"test": "99.51%"}),),
        needs=NEEDS,
        test_size=TEST_SIZE,
        differences=(*DIFFERENCES, "what was trained, and at which rate, the report does not say of this number"),
    ),
    Study(
        name="001-kfold",
        report="001",
        item="section 6",
        title="cross-validation in place of one 80/20 split",
        base={**BASE, "transfer.train": BEST, "optimizer.lr": 5e-5},
        cells=tuple(Cell(f"fold {i + 1} of 5", {"data.split": f"kfold:5:{i}"}) for i in range(5)),
        needs=NEEDS,
        measures=("validation", "test"),
        differences=(*DIFFERENCES, "the report proposes it and has no numbers"),
    ),
)
