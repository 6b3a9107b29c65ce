"""The cartoon domain of PACS, 7 classes, from a folder: seed report 002's data.

    python -m tljax.main --config configs/pacs_cartoon.py --config.data.source=folder:PATH

SqueezeNet 1.0, head only, Adam 1e-3, 80/20: 78 to 85% of the 466 validation images after 6 epochs.
"""

from tljax.settings import fields


def get_config():
    config = fields.get_config()
    config.data.source = "folder:pacs_cartoon"
    config.data.split = "80/20"
    config.epochs = 6
    config.model.name = "squeezenet1_0"
    return config
