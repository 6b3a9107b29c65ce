"""Every network against what torchvision computes in float64."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.metrics.losses import make_loss
from tljax.models import ForwardContext, create_model, variable_shapes
from tljax.transfer.plan import BN_MODES
from tljax.weights.hub import FILES
from tljax.weights.torch_names import from_torch, to_torch

TOLERANCE = 1e-9


def differs(ours, theirs) -> float:
    """max |a - b| over max |b|; where b is all zero, max |a|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1.0))


@pytest.mark.parity
@pytest.mark.real_data
@pytest.mark.parametrize("name", FILES["imagenet"])
def test_network_equals_torchvision(name, shared, x64):
    spec = importlib.util.spec_from_file_location("reference", shared / "reference" / "torchvision_reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    theirs = np.load(shared / "reference" / f"{name}.npz")
    images, train_images, labels = reference.inputs()
    np.testing.assert_allclose([np.abs(images).sum(), np.abs(train_images).sum()], theirs["input_sums"], rtol=1e-12)

    model = create_model(name, dtype="float64", dropout=0.0 if name.startswith("squeezenet") else None)
    shapes = variable_shapes(model)
    state_dict = to_torch(jax.tree.map(lambda x: np.broadcast_to(np.float64(0), x.shape), shapes))
    state_dict = {k: reference.weights_for(k, v.shape) for k, v in state_dict.items() if not k.endswith("tracked")}
    variables = jax.tree.map(jnp.asarray, from_torch(state_dict))
    assert jax.tree.structure(variables) == jax.tree.structure(shapes)

    # One image of the two: XLA's convolutions in double precision take half a minute over it in the deepest network.
    logits = jax.jit(model.apply)(variables, images[:1].transpose(0, 2, 3, 1))
    assert logits.dtype == np.float64
    assert differs(logits, theirs["eval_logits"][:1]) <= TOLERANCE

    def loss(params):
        forward = ForwardContext(bn=dict.fromkeys(model.groups, BN_MODES["train"]))
        logits, changed = model.apply(
            {**variables, "params": params}, train_images.transpose(0, 2, 3, 1), forward, mutable=["batch_stats"]
        )
        return make_loss("softmax")(logits, labels).mean(), (logits, changed.get("batch_stats", {}))

    (value, (logits, stats)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert differs(value, theirs["train_loss"]) <= TOLERANCE
    assert differs(logits, theirs["train_logits"]) <= TOLERANCE
    found = to_torch({"params": grads, "batch_stats": stats})
    compared = 0
    for key in theirs:
        kind, _, name_there = key.partition("/")
        if kind == "grad_norm":
            assert differs(np.linalg.norm(found[name_there]), theirs[key]) <= TOLERANCE, key
        elif kind == "grad_head":
            assert differs(found[name_there].reshape(-1)[:8], theirs[key]) <= TOLERANCE, key
        elif kind == "stats":
            assert differs(found[name_there], theirs[key]) <= TOLERANCE, key
        else:
            continue
        compared += 1
    assert compared == 2 * len(jax.tree.leaves(grads)) + len(jax.tree.leaves(stats))
