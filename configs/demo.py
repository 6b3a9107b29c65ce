"""What `python -m tljax.main` does by default: transfer between two procedural tasks, 3 minutes on 2 cores.

    make demo

Last stage + head ends clearly above training from scratch; the intervals do not touch.
"""

import ml_collections

from tljax.settings import fields


def get_config():
    config = fields.get_config()
    with config.unlocked():
        config.demo = ml_collections.ConfigDict({"source_epochs": 8, "source_lr": 3e-3})
    config.run = "demo"
    config.epochs = 15
    config.data.resize = 64
    config.data.size = 56
    config.model.width = 16
    config.model.blocks = (1, 1, 1, 1)
    config.optimizer.lr = 1e-3
    config.schedule.name = "cosine"
    config.augment.crop = "random"
    config.augment.flip = False
    return config
