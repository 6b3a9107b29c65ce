"""Report 001's pseudo-labels on PACS cartoon: SqueezeNet's classifier, 10% of the labels, three rounds of students."""

from tljax.settings import fields


def get_config():
    config = fields.get_config().unlock()
    config.epochs, config.batch_size = 5, 32
    config.data.source = "folder:pacs_cartoon"
    config.data.split = "40/10/50"
    config.data.labels = "10%"
    config.data.stratify = False  # the report shuffles
    config.model.name = "squeezenet1_0"
    config.cache.views = 8
    config.semi.method, config.semi.rounds, config.semi.select = "pseudo_label", 3, "top"
    return config.lock()
