"""The network of Keras's tutorial: parameter for parameter, output for output, and its statistics."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tljax.models import ForwardContext, create_model, init_variables, variable_shapes
from tljax.models.layers import BatchNormMode
from tljax.transfer.plan import make_plan, prefix_end

TRAIN = BatchNormMode(use_batch=True, update=True, train_affine=True)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("outputs, parameters", [(1, 2_731_065), (120, 2_731_065 + 119 * 1025)])
def test_it_has_the_tutorials_parameters(outputs, parameters):
    shapes = variable_shapes(create_model("mini_xception", num_classes=outputs))
    assert count(shapes) == parameters


def test_layers_are_groups_and_can_start_fresh_one_by_one():
    model = create_model("mini_xception", num_classes=1, width=8)
    assert model.groups[:4] == ("conv1", "norm1", "sep1a", "norm1a")
    assert model.groups[-4:] == ("short3", "sep4", "norm4", "head")
    shapes = variable_shapes(model)
    assert {model.group_of(path) for path in traverse_util.flatten_dict(shapes["params"])} == set(model.groups)
    plan = make_plan(model, shapes, train="short3,sep4,head", fresh="short3,sep4,head", bn="eval", lr=1e-4)
    assert prefix_end(model, plan) == "block3"  # what lies before the first layer that trains is the same all along
    first = make_plan(model, shapes, train="conv1,head", bn="eval", lr=1e-4)
    assert prefix_end(model, first) is None


def keras_network(outputs):
    """`make_model` of the tutorial, without the rescaling and with one head."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras = pytest.importorskip("keras")
        layers = keras.layers
        inputs = keras.Input((64, 64, 3))
        x = layers.Conv2D(128, 3, strides=2, padding="same", name="conv1")(inputs)
        x = layers.Activation("relu")(layers.BatchNormalization(name="norm1")(x))
        previous = x
        for i, size in enumerate((256, 512, 728), 1):
            for part in "ab":
                x = layers.Activation("relu")(x)
                x = layers.SeparableConv2D(size, 3, padding="same", name=f"sep{i}{part}")(x)
                x = layers.BatchNormalization(name=f"norm{i}{part}")(x)
            x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
            residual = layers.Conv2D(size, 1, strides=2, padding="same", name=f"short{i}")(previous)
            previous = x = layers.add([x, residual])
        x = layers.SeparableConv2D(1024, 3, padding="same", name="sep4")(x)
        x = layers.Activation("relu")(layers.BatchNormalization(name="norm4")(x))
        x = layers.Dropout(0.25)(layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, layers.Dense(outputs, name="head")(x))


def test_outputs_and_running_statistics_are_keras():
    net = keras_network(2)
    model = create_model("mini_xception", num_classes=2)
    rng = np.random.default_rng(0)
    variables = init_variables(model, jax.random.key(0))
    assert count(variables) == net.count_params()
    flat = {
        path: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape) if path[-1] in ("var", "scale") else leaf + 0.01)
        for path, leaf in traverse_util.flatten_dict(variables).items()
    }
    for layer in net.layers:
        own = {path[2:]: np.asarray(v) for path, v in flat.items() if path[1] == layer.name}
        stats = {path[2:]: np.asarray(v) for path, v in flat.items() if path[:2] == ("batch_stats", layer.name)}
        if layer.name.startswith("norm"):
            layer.set_weights([own["scale",], own["bias",], stats["mean",], stats["var",]])
        elif layer.name.startswith("sep"):
            kernel = own["depthwise",].swapaxes(2, 3)
            layer.set_weights([kernel, own["pointwise", "kernel"], own["pointwise", "bias"]])
        elif own:
            layer.set_weights([own["kernel",], own["bias",]])
    variables = traverse_util.unflatten_dict(flat)
    x = rng.uniform(size=(3, 64, 64, 3)).astype(np.float32)
    ours = jax.jit(lambda v, x: model.apply(v, x))(variables, x)
    np.testing.assert_allclose(ours, net(x, training=False), atol=2e-4, rtol=2e-4)

    modes = {group: TRAIN for group in model.groups if group.startswith("norm")}
    _, moved = jax.jit(lambda v, x: model.apply(v, x, ForwardContext(bn=modes), mutable=["batch_stats"]))(variables, x)
    net(x, training=True)
    for name, stats in moved["batch_stats"].items():
        layer = net.get_layer(name)
        np.testing.assert_allclose(stats["mean"], layer.moving_mean, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(stats["var"], layer.moving_variance, atol=1e-4, rtol=1e-4, err_msg=name)


def test_initial_parameters_are_keras():
    """Glorot uniform, depthwise kernels by Keras's own count of fans; no bias."""
    params = init_variables(create_model("mini_xception", num_classes=2), jax.random.key(0))["params"]
    bounds = {
        ("conv1", "kernel"): np.sqrt(6 / (9 * 3 + 9 * 128)),
        ("sep2a", "depthwise"): np.sqrt(6 / (9 * 256 + 9)),
        ("sep2a", "pointwise", "kernel"): np.sqrt(6 / (256 + 512)),
        ("head", "kernel"): np.sqrt(6 / (1024 + 2)),
    }
    flat = traverse_util.flatten_dict(params)
    for path, bound in bounds.items():
        largest = float(jnp.abs(flat[path]).max())
        assert 0.97 * bound < largest <= bound, path
    assert all(not value.any() for path, value in flat.items() if path[-1] == "bias")
