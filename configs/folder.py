"""A folder of your own images: one folder per class, or train/, val/ and test/ with one folder per class in each.

    python -m tljax.main --config configs/folder.py --config.data.source=folder:PATH

Trains the head of an ImageNet ResNet-18; 70/20/10, unless the folder is split already.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.data.source = "folder:photos"
    config.data.split = "auto"
    return config
