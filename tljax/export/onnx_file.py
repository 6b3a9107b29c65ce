"""A traced network as an ONNX model.

jax2onnx does this for any JAX program, but its releases that know today's JAX ask for an older Orbax, and those that do
not fail at a batch of any size. A network that evaluates is made of a dozen operations, each of which ONNX has, too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from jax.extend import core

OPSET, IR_VERSION = 17, 8  # of 2022: what any onnxruntime of the last years reads
BATCH = "batch"
CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call")
ELEMENTWISE = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max"}
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


class Value(NamedTuple):
    """What a variable of the traced program is in the graph.

    Attributes:
      name: of the tensor; empty for a constant.
      constant: its value, as JAX lays it out.
      nchw: whether the tensor has channels second, as ONNX's convolutions do, where JAX has them last.
    """

    name: str = ""
    constant: np.ndarray | None = None
    nchw: bool = False


class Graph:
    """An ONNX graph that grows node by node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *names: str, output: str = "", **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, names, [output], f"node_{output}", **attributes))
        return output

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def name(self, value: Value, *, nchw: bool) -> str:
        """The name of the tensor in one of the two layouts, which concern tensors of four axes."""
        if value.constant is not None:
            turned = nchw and value.constant.ndim == 4
            return self.constant(value.constant.transpose(TO_NCHW) if turned else value.constant)
        if value.nchw != nchw:
            return self.add("Transpose", value.name, perm=TO_NCHW if nchw else TO_NHWC)
        return value.name

    def run(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Adds what a jaxpr computes of the inputs; returns its outputs.

        Raises:
          NotImplementedError: for an operation, or a form of one, that no network here has.
        """
        held: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        held |= {v: Value(constant=np.asarray(c)) for v, c in zip(jaxpr.constvars, constants, strict=True)}

        def read(v: Any) -> Value:
            if isinstance(v, core.Literal):
                aval: Any = v.aval  # a Python number that stands for a float32
                return Value(constant=np.asarray(v.val, aval.dtype))
            return held[v]

        for equation in jaxpr.eqns:
            ins, kind, params = [read(v) for v in equation.invars], equation.primitive.name, equation.params
            if kind in CALLS:
                inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
                outs = self.run(inner.jaxpr, inner.consts, ins)
            elif all(value.constant is not None for value in ins):
                done = equation.primitive.bind(*(jnp.asarray(value.constant) for value in ins), **params)
                results = done if equation.primitive.multiple_results else [done]
                outs = [Value(constant=np.asarray(result)) for result in results]
            elif kind in ELEMENTWISE:
                nchw = any(value.nchw for value in ins)
                outs = [Value(self.add(ELEMENTWISE[kind], *(self.name(one, nchw=nchw) for one in ins)), nchw=nchw)]
            elif kind in OPERATIONS:
                outs = [OPERATIONS[kind](self, params, *ins)]
            else:
                raise NotImplementedError(f"{kind} has no form in ONNX here")
            held.update(zip(equation.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]


def _need(fits: bool, what: str) -> None:
    if not fits:
        raise NotImplementedError(f"{what} has no form in ONNX here")


def _pads(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [low for low, _ in pairs] + [high for _, high in pairs]


def _conv(graph: Graph, p: Mapping[str, Any], x: Value, kernel: Value) -> Value:
    specs = p["dimension_numbers"]
    plain = (specs.lhs_spec, specs.rhs_spec, specs.out_spec) == (TO_NCHW, (3, 2, 0, 1), TO_NCHW)
    _need(plain and set(p["lhs_dilation"]) == {1} and p["batch_group_count"] == 1, "a convolution not NHWC, HWIO")
    _need(kernel.constant is not None, "a convolution whose kernel is computed")
    weights = graph.constant(np.transpose(kernel.constant, (3, 2, 0, 1)))  # type: ignore[arg-type]
    return Value(
        graph.add(
            "Conv", graph.name(x, nchw=True), weights, strides=p["window_strides"], pads=_pads(p["padding"]),
            dilations=p["rhs_dilation"], group=p["feature_group_count"],
        ),
        nchw=True,
    )  # fmt: skip


def _max_pool(graph: Graph, p: Mapping[str, Any], x: Value) -> Value:
    (n, *window, c), (_, *strides, _), (_, *sides, _) = p["window_dimensions"], p["window_strides"], p["padding"]
    _need(n == c == 1 and {*p["base_dilation"], *p["window_dilation"]} == {1}, "a pooling over channels or dilated")
    return Value(
        graph.add("MaxPool", graph.name(x, nchw=True), kernel_shape=window, strides=strides, pads=_pads(sides)),
        nchw=True,
    )


def _sum(graph: Graph, p: Mapping[str, Any], x: Value) -> Value:
    _need(tuple(p["axes"]) == (1, 2), "a sum that is not over height and width")
    axes = graph.constant(np.array([2, 3] if x.nchw else [1, 2], np.int64))
    return Value(graph.add("ReduceSum", x.name, axes, keepdims=0))


def _dot(graph: Graph, p: Mapping[str, Any], x: Value, kernel: Value) -> Value:
    (contracted, batch) = p["dimension_numbers"]
    _need(tuple(map(tuple, contracted)) == ((1,), (0,)) and not any(batch), "a product that is not of two matrices")
    return Value(graph.add("MatMul", graph.name(x, nchw=False), graph.name(kernel, nchw=False)))


def _concatenate(graph: Graph, p: Mapping[str, Any], *parts: Value) -> Value:
    _need(p["dimension"] == 3, "a concatenation that is not of channels")
    return Value(graph.add("Concat", *(graph.name(part, nchw=True) for part in parts), axis=1), nchw=True)


def _cast(graph: Graph, p: Mapping[str, Any], x: Value) -> Value:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(p["new_dtype"]))
    return x._replace(name=graph.add("Cast", x.name, to=kind))


OPERATIONS: dict[str, Callable[..., Value]] = {
    "conv_general_dilated": _conv,
    "reduce_window_max": _max_pool,
    "reduce_sum": _sum,
    "dot_general": _dot,
    "concatenate": _concatenate,
    "convert_element_type": _cast,
}


def make_model(
    forward: Callable[[jax.Array], jax.Array], *, side: int, outputs: int, temperature: float,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:  # fmt: skip
    """The model `image` uint8 `[batch, side, side, 3]` -> `probabilities` `[batch, classes]`, `logits`
    `[batch, outputs]`, checked by ONNX's own rules.

    Args:
      forward: squares uint8 to logits, its weights closed over; traced in `plain_operations`.
      side: of the squares, in pixels.
      outputs: logits per image; of one there are two classes.
      temperature: what logits are divided by.
      metadata: text by name, kept in the model.
    """
    shape = export.symbolic_shape(f"{BATCH}, {side}, {side}, 3")
    traced = jax.make_jaxpr(forward)(jax.ShapeDtypeStruct(shape, jnp.uint8))
    graph = Graph()
    (found,) = graph.run(traced.jaxpr, traced.consts, [Value("image")])
    logits = graph.add("Identity", graph.name(found, nchw=False), output="logits")
    scaled = graph.add("Div", logits, graph.constant(np.float32(temperature)))
    if outputs == 1:
        scaled = graph.add("Concat", graph.add("Mul", scaled, graph.constant(np.float32(0))), scaled, axis=1)
    graph.add("Softmax", scaled, axis=1, output="probabilities")

    def tensor(name: str, kind: int, *sides: int) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, kind, [BATCH, *sides])

    kinds = onnx.TensorProto
    made = onnx.helper.make_graph(
        graph.nodes, "classifier", [tensor("image", kinds.UINT8, side, side, 3)],
        [tensor("probabilities", kinds.FLOAT, max(2, outputs)), tensor("logits", kinds.FLOAT, outputs)],
        graph.constants,
    )  # fmt: skip
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tljax"
    )
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model
