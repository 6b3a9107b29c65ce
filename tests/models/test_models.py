"""Shapes, counts and options of the networks."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.core.errors import UserError
from tljax.models import MODELS, ForwardContext, check_side, cpu, create_model, init_variables, variable_shapes
from tljax.models.layers import dropout, max_pool, random_fields

# torchvision's own counts, from its documentation of the weights.
COUNTS = {
    "resnet18": 11689512,
    "resnet34": 21797672,
    "resnet50": 25557032,
    "resnet101": 44549160,
    "resnet152": 60192808,
    "squeezenet1_0": 1248424,
    "squeezenet1_1": 1235496,
}


def small(name="resnet18", **options):
    return create_model(
        name, num_classes=5, **({"width": 8, "blocks": (1, 1, 1, 1)} if "resnet" in name else {}), **options
    )


def test_every_network_is_counted():
    assert {*COUNTS, "mini_xception"} == set(MODELS)  # test_xception.py holds that one against Keras


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_exactly_torchvisions(name):
    shapes = variable_shapes(create_model(name))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == COUNTS[name]


@pytest.mark.parametrize(
    "name,last_stage,features",
    [
        ("resnet18", "layer3", 32),
        ("resnet50", "layer1", 32),
        ("squeezenet1_0", "fire4", 256),
        ("squeezenet1_1", "stem", 64),
    ],
)
def test_last_stage_puts_the_head_on_an_earlier_stage(name, last_stage, features):
    model = small(name, last_stage=last_stage)
    variables = init_variables(model, jax.random.key(0))
    assert model.groups[-2:] == (last_stage, "head")
    kernel = variables["params"]["classifier_1" if "squeezenet" in name else "fc"]["kernel"]
    assert kernel.shape[-2:] == (features, 5)
    assert model.apply(variables, jnp.zeros((2, 64, 64, 3))).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "squeezenet1_0"])
def test_stages_run_one_by_one_give_the_whole(name):
    model = small(name)
    variables = init_variables(model, jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    whole = model.apply(variables, images)
    for stage in model.stages[1:]:
        kept = model.apply(variables, images, stop_stage=stage)
        np.testing.assert_array_equal(model.apply(variables, kept, start_stage=stage), whole)


def test_named_activations_on_request():
    model = small()
    variables = init_variables(model, jax.random.key(0))
    _, sown = model.apply(variables, jnp.ones((1, 64, 64, 3)), mutable=["intermediates"])
    found = sown["intermediates"]
    before, after = found["stem_before_relu"][0], found["stem_relu"][0]
    assert before.shape == (1, 32, 32, 8)
    np.testing.assert_array_equal(jnp.maximum(before, 0), after)
    assert found["layer3"][0].shape == (1, 4, 4, 32)
    assert found["pool"][0].shape == (1, 64)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    model = small(dtype="bfloat16")
    variables = init_variables(model, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, sown = model.apply(variables, jnp.ones((1, 64, 64, 3)), mutable=["intermediates"])
    assert logits.dtype == jnp.bfloat16
    assert sown["intermediates"]["layer2"][0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "size,window,stride,ceil,expected",
    [(13, 3, 2, False, 6), (13, 3, 2, True, 6), (14, 3, 2, False, 6), (14, 3, 2, True, 7)],
)
def test_max_pool_in_ceil_mode_hangs_over_the_edge(size, window, stride, ceil, expected):
    x = -1 - jnp.arange(size * size, dtype=jnp.float32).reshape(1, size, size, 1)
    y = max_pool(x, window=window, stride=stride, ceil=ceil)
    assert y.shape == (1, expected, expected, 1)
    naive = [
        [x[0, i * stride : i * stride + window, j * stride : j * stride + window, 0].max() for j in range(expected)]
        for i in range(expected)
    ]
    np.testing.assert_array_equal(y[0, :, :, 0], naive)


@pytest.mark.parametrize(
    "shape, window, stride, padding, ceil",
    [((2, 9, 12, 3), 3, 2, 1, False), ((1, 8, 8, 2), 3, 2, 0, True), ((1, 6, 7, 2), 2, 2, 0, False),
     ((1, 7, 5, 1), 3, 1, 1, False)],
)  # fmt: skip
def test_max_pool_by_slices_is_xlas_own_with_its_gradient_also_among_equal_values(shape, window, stride, padding, ceil):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)  # many equal values
    over = [-(n + 2 * padding - window) % stride if ceil else 0 for n in shape[1:3]]
    sides = tuple((padding, padding + o) for o in over)

    def reference(x):
        return nn.max_pool(x, (window, window), (stride, stride), sides)

    y, gradient = jax.vjp(lambda x: cpu.max_pool(x, window, stride, sides), x)
    expected, expected_gradient = jax.vjp(reference, x)
    np.testing.assert_array_equal(y, expected)
    g = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    np.testing.assert_allclose(gradient(g)[0], expected_gradient(g)[0], atol=1e-6)
    mapped = jax.vmap(lambda x: cpu.max_pool(x[None], window, stride, sides)[0])(x)
    np.testing.assert_array_equal(mapped, expected)


def test_a_gpu_scatters_nothing_behind_a_max_pool_where_it_is_to_be_deterministic(monkeypatch):
    def backward():
        x = jnp.zeros((1, 8, 8, 2))
        return str(jax.make_jaxpr(jax.grad(lambda x: max_pool(x, padding=1).sum()))(x))

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # there is none here
    monkeypatch.setenv("XLA_FLAGS", "")
    assert "scatter" in backward()
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    assert "scatter" not in backward()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "height", "width"),
    [(7, 2, 3, 23, 20), (3, 1, 1, 7, 8), (3, 2, 1, 8, 7), (3, 2, 0, 9, 10), (1, 1, 0, 5, 5), (1, 2, 0, 7, 8)],
)
def test_gradients_of_convolutions_are_xlas(kernel, stride, padding, height, width, x64):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, height, width, 4)), rng.normal(size=(kernel, kernel, 4, 5))
    strides, sides = (stride, stride), ((padding, padding),) * 2

    def reference(x, w):
        return jax.lax.conv_general_dilated(x, w, strides, sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    y, gradients = jax.vjp(lambda x, w: cpu.conv(x, w, strides, sides), x, w)
    expected, expected_gradients = jax.vjp(reference, x, w)
    np.testing.assert_array_equal(y, expected)
    g = rng.normal(size=y.shape)
    for found, wanted in zip(gradients(g), expected_gradients(g), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_convolutions_in_a_loop_have_the_form_that_eigen_computes():
    """Any other is computed by a plain loop nest, 200 times as slow: members of a population and accumulated parts."""
    model = small()
    variables = init_variables(model, jax.random.key(0))

    def gradient(images):
        return jax.grad(lambda params: model.apply({**variables, "params": params}, images).sum())(variables["params"])

    program = (
        jax.jit(lambda parts: jax.lax.map(gradient, parts)).lower(jnp.zeros((2, 2, 96, 96, 3))).compile().as_text()
    )
    forms = re.findall(r" convolution\(.*dim_labels=(\S+?),? ", program)
    assert "while(" in program
    assert len(forms) > 20
    assert set(forms) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.3])
def test_dropout_depends_on_the_examples_key_alone(rate):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.ones((4, 2000))
    y = dropout(x, rate, keys)
    np.testing.assert_array_equal(y[::-1], dropout(x, rate, keys[::-1]))
    assert set(np.unique(y).tolist()) == {0.0, (np.float32(1) / np.float32(1 - rate)).item()}
    assert abs(float(y.mean()) - 1) < 0.03
    assert dropout(x, rate, None) is x


@pytest.mark.parametrize("width", [1, 4, 8])
def test_random_fields_are_uniform_and_independent_of_their_neighbors(width):
    fields = np.asarray(random_fields(jax.random.key(0), (40, 1001), width)).reshape(-1).astype(float)
    assert fields.min() == 0
    assert fields.max() == 2**width - 1
    counts = np.bincount(fields.astype(int))
    expected = len(fields) / 2**width
    assert ((counts - expected) ** 2 / expected).sum() < 2**width + 5 * np.sqrt(2 ** (width + 1))
    for lag in (1, 2, 4, 8, 32):
        assert abs(np.corrcoef(fields[:-lag], fields[lag:])[0, 1]) < 0.025


def test_squeezenet_drops_only_when_given_keys():
    model = small("squeezenet1_1", dropout=0.5)
    variables = init_variables(model, jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    plain = model.apply(variables, images)
    np.testing.assert_array_equal(plain, model.apply(variables, images))
    dropped = model.apply(variables, images, ForwardContext(keys=jax.random.split(jax.random.key(2), 2)))
    assert not np.array_equal(plain, dropped)


@pytest.mark.parametrize(
    "call,words",
    [
        (dict(name="resnet19"), ["resnet19", "resnet18", "squeezenet1_1"]),
        (dict(name="resnet18", last_stage="layer9"), ["layer9", "layer3"]),
        (dict(name="resnet18", last_stage="head"), ["head", "layer4"]),
        (dict(name="squeezenet1_0", stochastic_depth=0.1), ["stochastic_depth", "squeezenet1_0"]),
        (dict(name="squeezenet1_0", width=3), ["width", "squeezenet1_0"]),
        (dict(name="resnet18", dtype="int8"), ["int8", "bfloat16"]),
        (dict(name="resnet18", dtype="float64"), ["JAX_ENABLE_X64"]),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(call, words):
    with pytest.raises(UserError) as caught:
        create_model(**call)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name,fan_in", [("resnet18", 64), ("squeezenet1_0", 512)])
def test_a_fresh_head_is_torchs_new_layer(name, fan_in):
    """U(-b, b), b = 1 / sqrt(fan_in), weight and bias: what replacing the last layer gives in PyTorch."""
    variables = init_variables(small(name).clone(num_classes=500), jax.random.key(0))
    head = variables["params"]["classifier_1" if "squeezenet" in name else "fc"]
    for values in head.values():
        bound = fan_in**-0.5
        assert float(jnp.abs(values).max()) <= bound
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_stochastic_depth_leaves_out_branches_of_whole_examples():
    """Of the only block of a network: with its branch, scaled, or without; by the example's key alone."""
    model = create_model("resnet18", num_classes=3, width=4, blocks=(1,), stochastic_depth=0.4)
    plain = create_model("resnet18", num_classes=3, width=4, blocks=(1,))
    variables = init_variables(model, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    x = jnp.tile(jax.random.normal(jax.random.key(1), (1, 16, 16, 3)), (400, 1, 1, 1))
    assert np.array_equal(model.apply(variables, x[:2]), plain.apply(variables, x[:2]))  # an evaluation
    keys = jax.random.split(jax.random.key(2), 400)
    stem = plain.apply(variables, x[:1], stop_stage="layer1")
    block = plain.apply(variables, stem, start_stage="layer1", stop_stage="pool")
    out = np.asarray(model.apply(variables, x, ForwardContext(keys=keys), stop_stage="pool"))
    # The block ends in relu(stem + branch); where that is positive the branch is what was added.
    branch = np.where(block > 0, block - stem, np.nan)[0]
    kept = np.isclose(out, np.maximum(np.asarray(stem) + branch / 0.6, 0), atol=1e-4, rtol=1e-4) | np.isnan(branch)
    without = np.isclose(out, np.asarray(stem), atol=1e-5)
    kept, without = kept.all((1, 2, 3)), without.all((1, 2, 3))
    assert (kept | without).all() and 200 < kept.sum() < 280
    assert np.array_equal(out[:7], model.apply(variables, x[:7], ForwardContext(keys=keys[:7]), stop_stage="pool"))


@pytest.mark.parametrize(
    ("name", "path", "options"),
    [
        ("resnet18", ("fc",), {"width": 64, "blocks": (1, 1)}),
        ("squeezenet1_0", ("classifier_1",), {}),
        ("mini_xception", ("head",), {"width": 32}),
    ],
)
def test_a_head_begins_small_where_that_is_asked_for(name, path, options):
    model = create_model(name, num_classes=200, head_init="normal", **options)
    head = init_variables(model, jax.random.key(0))["params"]
    for part in path:
        head = head[part]
    assert not np.any(head["bias"])
    assert np.std(head["kernel"]) == pytest.approx(0.01, rel=0.02)
    with pytest.raises(UserError, match=r"model.head_init='zero' is not one of torch, normal"):
        create_model(name, head_init="zero")


@pytest.mark.parametrize(
    "name, least", [("squeezenet1_0", 21), ("squeezenet1_1", 17), ("resnet18", 1), ("mini_xception", 1)]
)
def test_pictures_that_are_too_small_are_told_the_least_side(name, least):
    model = create_model(name, num_classes=5)
    check_side(model, name, least)
    for side in {1, least - 1} - {0, least}:
        with pytest.raises(UserError, match=f"^data.size={side} is too small for model.name={name}; it takes {least} "):
            check_side(model, name, side)
    out = jax.eval_shape(model.apply, variable_shapes(model), jax.ShapeDtypeStruct((1, least, least, 3), jnp.float32))
    assert out.shape == (1, 5)
