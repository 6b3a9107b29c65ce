"""Oxford-IIIT Pet, cat or dog: seed report 000's first task (ResNet-34, head only, Adam 1e-4, 3 epochs; 99.3 to 99.6%).

python -m tljax.main --config configs/pets_binary.py
"""

from tljax.settings import fields


def get_config():
    config = fields.get_config()
    config.data.source = "tfds:oxford_iiit_pet"
    config.data.label = "species"
    config.data.split = "70/20/10"
    config.epochs = 3
    config.model.name = "resnet34"
    config.optimizer.lr = 1e-4
    config.augment.crop = "center"
    config.augment.flip = False
    return config
