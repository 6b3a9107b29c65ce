"""Groups divide a network without gaps or overlaps, in the order in which it runs."""

import jax
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.models import MODELS, create_model, variable_shapes

DEEP = [name for name in sorted(MODELS) if name in ("resnet50", "resnet101", "resnet152")]
OTHERS = [name for name in sorted(MODELS) if name not in DEEP]


@st.composite
def networks(draw, names):
    """These networks, their small relatives among them, cut anywhere."""
    name, options = draw(st.sampled_from(names)), {}
    if "resnet" in name and draw(st.booleans()):
        options["blocks"] = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    if "squeezenet" not in name and draw(st.booleans()):
        options["width"] = draw(st.integers(1, 9))
    last_stage = draw(st.sampled_from([None, *create_model(name, **options).trunk]))
    return create_model(name, num_classes=draw(st.integers(1, 5)), last_stage=last_stage, **options)


@pytest.mark.parametrize("names", [DEEP, OTHERS], ids=["deep", "others"])
@settings(max_examples=settings().max_examples // 4)
@given(st.data())
def test_each_stage_runs_on_the_variables_of_its_own_groups_alone(names, data):
    """So each parameter and statistic is in the group of the stage that reads it, and in no other."""
    model = data.draw(networks(names))
    flat = {name: traverse_util.flatten_dict(tree) for name, tree in variable_shapes(model).items()}
    assert {model.group_of(path) for path in flat["params"]} == set(model.groups)
    assert {path[:-1] for path in flat["batch_stats"]} <= {path[:-1] for path in flat["params"]}
    places = [model.stages.index(model.stage_of(group)) for group in model.groups]
    assert places == sorted(places) and len(set(model.groups)) == len(model.groups) and model.groups[-1] == "head"
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    for stage, following in zip(model.stages, [*model.stages[1:], None], strict=True):
        own = {
            name: traverse_util.unflatten_dict(
                {path: leaf for path, leaf in leaves.items() if model.stage_of(model.group_of(path)) == stage}
            )
            for name, leaves in flat.items()
        }
        x = jax.eval_shape(
            lambda own, x, a=stage, b=following: model.apply(own, x, start_stage=a, stop_stage=b), own, x
        )
    assert x.shape == (1, model.num_classes)
