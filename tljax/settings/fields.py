"""Every field there is, with what it means. Other configs start from here and override; unknown names are refused."""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """The defaults. `placeholder` fields are empty until set."""
    config = ml_collections.ConfigDict()

    config.run = "train"  # what main does: train one network, or the demo
    config.seed = 0  # of the fresh parameters, the order of the batches, augmentation and dropout
    config.epochs = 10
    config.minutes = placeholder(float)  # of the whole command: sets `epochs`, which has to be open (configs/folder.py)
    config.stop_after = 0  # updates after which training ends, wherever epochs and rates stand; 0: none
    config.epoch_steps = 0  # updates of an epoch, whose end validates and saves; 0: one pass over the training images
    # The epoch that is tested: the best by validation accuracy, of equals the one with the lower loss; by validation
    # loss; or the last.
    config.select = "validation"  # validation, loss, last
    config.batch_size = 32  # examples per update, over all devices
    config.accumulate = 1  # parts that a batch is cut into to save memory; one update, but batch norms see a part each
    config.cross_replica_bn = False  # batch statistics over all devices instead of each device's own

    config.deterministic = False  # the same bits from run to run on a GPU too, at a price; on a CPU they are so anyway

    # A loss, gradient or parameter that is not finite ends a run. False, and in a population: it is told at the end.
    config.stop_at_nan = True
    config.pictures = True  # draw augmented.png, curves.png and calibration.png
    config.trackers = ("tensorboard",)  # what the run is logged to: tensorboard, mlflow, wandb; () for none

    config.data = data = ml_collections.ConfigDict()
    data.source = "shapes:target"  # folder:PATH, pets:PATH, tfds:NAME, shapes:TASK
    data.label = ""  # pets: breed, species; folder: folder, regex:PATTERN; tfds: a label feature. Empty: the usual one
    # Folders of folder:PATH that are splits, where their names do not say so: relative to PATH or not, several with
    # commas between; train=. alone: all first folders are classes. Empty: as the source has it.
    data.train = ""
    data.validation = ""
    data.test = ""
    # official; percentages A/B/C or A/B; kfold:K:I; holdout:P, holdout:P:swapped; auto: official, else 70/20/10
    data.split = "official"
    data.val = 0.2  # share of train that becomes validation where the split has none
    data.per_class = 0  # train on so many images per class; 0 for all
    data.labels = "all"  # of training images: all, a share such as 10%, or a number per class; the rest are unlabeled
    # A folder of training images without labels, for semi.method, beside those that data.labels leaves: within the
    # folder of folder:PATH, or from where the command is started; several with commas between.
    data.unlabeled = ""
    data.shapes_seed = placeholder(int)  # of procedural pictures (shapes:TASK); empty: `seed`
    data.labels_seed = placeholder(int)  # of which ones; empty: `seed`
    data.pseudo = ""  # a file of labels that a network gave to unlabeled images (see tljax/data/labels.py)
    data.stratify = True  # every split has each class in proportion
    data.split_seed = 0  # apart from `seed`, so that seeds of a run share their test images
    data.resize = 0  # short side, in pixels, that images are kept at; 0: what the weights were evaluated with, else 256
    data.size = 224  # side of what the network sees
    data.mean = ()  # per channel, 0 to 1; empty: what the weights were trained with, else ImageNet's
    data.std = ()
    data.normalize = "weights"  # where mean and std are empty: as just said, or "dataset": those of the training images
    data.boxes = False  # cut training images to their boxes, where the source knows them; others stay whole
    data.workers = 0  # decoding threads; 0: one per core
    data.memory_gb = 0.0  # decoded images beyond this lie in a file of the workdir; 0: half of the free memory
    data.placement = "auto"  # of decoded data and kept features: host, device, or auto: where it is fast
    data.tfds_dir = ""  # where TFDS keeps prepared data; empty: TFDS_DATA_DIR, else its own default

    config.model = model = ml_collections.ConfigDict()
    model.name = "resnet18"  # resnet18, 34, 50, 101, 152; squeezenet1_0, squeezenet1_1, mini_xception
    model.weights = "imagenet"  # imagenet, imagenet-v2, a file, a finished run's folder, or None
    model.last_stage = placeholder(str)  # last stage before the head, such as layer3
    model.outputs = 0  # of the head; 0: what the classes need
    model.dtype = "float32"  # of the computation: float32, bfloat16; float64 under JAX_ENABLE_X64=1
    model.width = placeholder(int)  # channels of the first convolution: ResNets 64, mini_xception 128
    model.blocks = placeholder(tuple)  # ResNets: blocks per layer
    model.dropout = placeholder(float)  # dropout before the head: SqueezeNets 0.5, mini_xception 0.25, ResNets 0
    model.head_init = "torch"  # of a new head: torch (uniform, as a replaced layer), normal (N(0, 0.01), no bias)
    # ResNets: the probability that training leaves out the last block; less for those before it.
    model.stochastic_depth = placeholder(float)

    config.transfer = transfer = ml_collections.ConfigDict()
    transfer.train = "head"  # groups that train, such as head,layer4; or all
    transfer.fresh = "head"  # groups that start from random numbers although weights are given
    transfer.bn = "trained:train,frozen:eval"  # a mode for all, or WHO:MODE pairs (see tljax/transfer/plan.py)
    transfer.seed = placeholder(int)  # of the fresh parameters alone; empty: `seed`
    transfer.phases = ""  # such as head@2; head,layer4 (groups@epochs@rate): in place of `train`
    transfer.moments = "keep"  # between phases, of groups that go on training: keep or fresh
    transfer.allow_fresh_frozen = False  # train over groups that are both random and frozen

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "adam"  # adam, adamw, sgd
    optimizer.lr = 1e-3
    optimizer.lr_groups = ""  # rates of their own, such as layer4:1e-5,stem:1e-6
    optimizer.lr_decay = 1.0  # factor from each group to the next one further from the head
    optimizer.momentum = 0.9  # sgd
    optimizer.weight_decay = 0.0
    optimizer.decay_all = False  # weight decay on biases and batch norms too, as torch does
    optimizer.clip = 0.0  # largest norm of the gradient; 0: no limit

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.name = "constant"  # constant, step, cosine; each phase runs its own
    schedule.warmup_epochs = 0.0
    schedule.step_epochs = 7.0  # step: epochs between two drops
    schedule.factor = 0.1  # step: what a drop multiplies by

    config.loss = loss = ml_collections.ConfigDict()
    loss.name = "softmax"  # softmax, or sigmoid: one logit for two classes
    loss.label_smoothing = 0.0

    config.augment = augment = ml_collections.ConfigDict()
    augment.crop = "random_resized"  # random_resized, random, center
    augment.scale = (0.08, 1.0)  # random_resized: share of the picture's area
    augment.ratio = (3 / 4, 4 / 3)  # random_resized: width / height
    augment.flip = True
    augment.rotation = 0.0  # degrees, either way
    augment.brightness = 0.0  # factors from 1 - x to 1 + x, as torchvision's ColorJitter
    augment.contrast = 0.0
    augment.saturation = 0.0
    augment.hue = 0.0  # a shift of up to so much of the circle of colors, 0 to 0.5
    augment.grayscale = 0.0  # probability of losing color
    augment.invert = 0.0  # probability of becoming a negative
    augment.blur = 0  # side of a Gaussian kernel in pixels, odd; its deviation is drawn from 0.1 to 2; 0: none
    augment.rand_ops = 0  # RandAugment: so many operations on each view, drawn from torchvision's fourteen
    augment.rand_magnitude = 9.0  # how strong they are, 0 to 30

    # What a report did and a study repeats; of no use otherwise.
    config.protocol = protocol = ml_collections.ConfigDict()
    protocol.rotations = 1  # rotates by so many angles of augment.rotation, one after the other
    protocol.augmented_copies = 0  # every image as it is and so many augmented copies; 0: every image augmented, once
    protocol.color_after_normalization = False  # changes colors after normalization, and cuts them to 0 to 1 there

    config.cache = cache = ml_collections.ConfigDict()
    cache.features = "auto"  # what a prefix that never changes puts out: auto (computed once where that is exact), off
    cache.views = 0  # under random augmentation: train on so many fixed views of each image, and keep their features
    cache.seed = placeholder(int)  # of those fixed views alone; empty: `seed`
    cache.memory_gb = 0.0  # features beyond this lie in a file of the workdir; 0: half of the free memory

    # Training images without a label (data.labels). pseudo_label: a teacher trains on the labels and labels the others,
    # students train on both, each the next one's teacher; `epochs` are a student's.
    config.semi = semi = ml_collections.ConfigDict()
    # The other methods take both kinds of images in one step, an epoch being a pass over the unlabeled ones.
    semi.method = "none"  # none, pseudo_label, mean_teacher, fixmatch, flexmatch, meta_pseudo_labels
    semi.rounds = 1  # students, one after the other
    semi.teacher_epochs = 0  # of the first teacher; 0: `epochs`
    semi.teacher_noise = True  # whether the first teacher trains with augmentation and dropout, as its students do
    semi.select = "all"  # which images are labeled: all, threshold, top (the most confident), top_per_class
    semi.threshold = 0.95  # least confidence; also of fixmatch, flexmatch and meta_pseudo_labels
    semi.share = 1.0  # top, top_per_class: of the images, in the last round; round r of R has r/R of it
    semi.targets = "hard"  # hard: the most probable class; soft: the probabilities
    semi.calibrate = False  # divide logits by a temperature fitted on validation, before the confidence is looked at
    semi.start = "weights"  # what students start from: weights (model.weights), or teacher, then nothing is fresh
    semi.batch_size = 32  # unlabeled images of an update, beside `batch_size` labeled ones
    semi.weight = 1.0  # of the loss on unlabeled images
    semi.ramp_epochs = 0.0  # in which that weight rises
    semi.strong_ops = 2  # RandAugment of an unlabeled image's second view: operations, on top of augment.*
    semi.strong_magnitude = 10.0
    semi.decay = 0.99  # mean_teacher: of the average of its weights, per update

    # Many runs in one program over one stream of batches: every combination of the values given. Each member ends
    # where its own single run would.
    config.population = population = ml_collections.ConfigDict()
    population.lr = ()  # in place of optimizer.lr, such as (1e-4, 1e-3)
    population.lr_groups = ()  # of optimizer.lr_groups
    population.weight_decay = ()  # of optimizer.weight_decay
    population.momentum = ()  # of optimizer.momentum
    population.optimizer = ()  # of optimizer.name, such as ("adam", "sgd")
    population.schedule = ()  # of schedule.name
    population.seed = ()  # of transfer.seed

    return config.lock()
