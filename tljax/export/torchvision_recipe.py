"""How to build in torchvision the network that a state_dict of ours fits, strictly."""

from tljax.core.errors import UserError
from tljax.models import MODELS, Network
from tljax.models.resnet import ResNet
from tljax.models.squeezenet import FIRES, POOL_AFTER, SQUEEZE, SqueezeNet

WIDTH = 64  # of torchvision's ResNets


def recipe(model: Network, arch: str) -> list[str]:
    """Lines of Python that make `model`. Layers above `model.last_stage` become identities, or are cut off a sequence.

    Raises:
      UserError: for a network that torchvision does not have.
    """
    if isinstance(model, ResNet):
        return _resnet(model, arch)
    if isinstance(model, SqueezeNet):
        return _squeezenet(model, arch)
    raise UserError(f"torchvision has no {arch}; export it --to onnx or stablehlo")


def _resnet(model: ResNet, arch: str) -> list[str]:
    if model.width != WIDTH:
        raise UserError(f"torchvision's {arch} begins with {WIDTH} channels, not model.width={model.width}; export it "
                        "--to onnx or stablehlo")  # fmt: skip
    layers = [stage for stage in model.groups if stage.startswith("layer")]
    if model.blocks == MODELS[arch][1]["blocks"]:
        made = f"torchvision.models.{arch}(num_classes={model.num_classes})"
    else:
        kind, blocks = "Bottleneck" if model.bottleneck else "BasicBlock", [*model.blocks, 1, 1, 1][:4]
        made = (f"torchvision.models.ResNet(torchvision.models.resnet.{kind}, {blocks}, "
                f"num_classes={model.num_classes})")  # fmt: skip
    lines = ["import torch, torchvision", f"model = {made}"]
    lines += [f"model.layer{i} = torch.nn.Identity()" for i in range(len(layers) + 1, 5)]
    if len(layers) < 4:
        channels = WIDTH * 2 ** (len(layers) - 1) * (4 if model.bottleneck else 1) if layers else WIDTH
        lines.append(f"model.fc = torch.nn.Linear({channels}, {model.num_classes})")
    return lines


def _squeezenet(model: SqueezeNet, arch: str) -> list[str]:
    lines = [
        "import torch, torchvision",
        f"model = torchvision.models.{arch}(num_classes={model.num_classes})",
    ]
    if model.last_stage is not None:
        last = max((int(group[4:]) for group in model.groups[1:-1]), default=0)
        # The stem is a convolution, its activation and a pooling.
        kept = FIRES[model.version][last] + 1 + (last in POOL_AFTER[model.version]) if last else 3
        channels = 8 * SQUEEZE[last] if last else (96 if model.version == "1.0" else 64)
        lines += [
            f"model.features = model.features[:{kept}]",
            f"model.classifier[1] = torch.nn.Conv2d({channels}, {model.num_classes}, 1)",
        ]
    return lines
