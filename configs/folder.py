"""A folder of your own images: one folder per class, or train/, val/ and test/ with one folder per class in each.

    python -m tljax.main --config configs/folder.py --config.data.source=folder:PATH

Trains the head of an ImageNet ResNet-18; 70/20/10, unless the folder is split already. How long, at which rate, on
which views, and which epoch is tested is chosen for the images at hand and said with its reasons; what you set stands.
"""

from ml_collections.config_dict import placeholder

from tljax.settings import fields


def get_config():
    config = fields.get_config()
    config.data.source = "folder:photos"
    config.data.split = "auto"
    # Chosen for the images at hand, see tljax/train/recipe.py.
    config.epochs, config.epoch_steps, config.select = placeholder(int), placeholder(int), placeholder(str)
    config.optimizer.lr, config.optimizer.lr_groups = placeholder(float), placeholder(str)
    config.schedule.name, config.model.head_init = placeholder(str), placeholder(str)
    config.cache.views = placeholder(int)
    return config
