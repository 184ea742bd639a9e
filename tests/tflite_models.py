"""Small TFLite models, made by hand: honest ones and an attacker's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
    "bool": schema.TensorType.BOOL,
    "resource": schema.TensorType.RESOURCE,
}


class Graph:
    """One subgraph under construction; `Builder` makes them."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.table = schema.SubGraphT()
        self.table.tensors, self.table.operators = [], []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "float32",
        *,
        data: np.ndarray | None = None,
        free: Sequence[int] | None = None,
    ) -> int:
        """Add a tensor; its index."""
        made = schema.TensorT()
        made.name, made.shape, made.type = name, list(shape), TYPES[dtype]
        made.shapeSignature = None if free is None else list(free)
        made.buffer = 0 if data is None else self.builder.buffer(data.tobytes())
        self.table.tensors.append(made)
        return len(self.table.tensors) - 1

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: tuple[str, Any] | None = None,
        custom: str | None = None,
    ) -> Any:
        """Add an operator. `options`: name of their class without its ``T``, and an instance."""
        made = schema.OperatorT()
        made.opcodeIndex = self.builder.code(name, custom)
        made.inputs, made.outputs = list(inputs), list(outputs)
        if options is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options[0])
            made.builtinOptions = options[1]
        self.table.operators.append(made)
        return made

    def ends(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self.table.inputs, self.table.outputs = list(inputs), list(outputs)


class Builder:
    """A model under construction."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, "handmade"
        self.model.buffers, self.model.operatorCodes, self.model.subgraphs = [schema.BufferT()], [], []

    def graph(self) -> Graph:
        made = Graph(self)
        self.model.subgraphs.append(made.table)
        return made

    def buffer(self, data: bytes) -> int:
        made = schema.BufferT()
        made.data = np.frombuffer(data, np.uint8)
        self.model.buffers.append(made)
        return len(self.model.buffers) - 1

    def code(self, name: str, custom: str | None) -> int:
        made = schema.OperatorCodeT()
        made.builtinCode = getattr(schema.BuiltinOperator, name)
        made.deprecatedBuiltinCode = min(127, made.builtinCode)
        made.customCode, made.version = custom, 1
        self.model.operatorCodes.append(made)
        return len(self.model.operatorCodes) - 1

    def data(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def dense(rows: int = 1, *, columns: int = 64, outputs: int = 32) -> Builder:
    """``y = x W'`` with a free number of rows."""
    b = Builder()
    g = b.graph()
    weights = np.random.default_rng(0).normal(size=(outputs, columns)).astype(np.float32)
    x = g.tensor("x", [rows, columns], free=[-1, columns])
    w = g.tensor("w", [outputs, columns], data=weights)
    y = g.tensor("y", [rows, outputs], free=[-1, outputs])
    g.operator("FULLY_CONNECTED", [x, w, -1], [y], ("FullyConnectedOptions", schema.FullyConnectedOptionsT()))
    g.ends([x], [y])
    return b


def running_sum() -> Builder:
    """Adds up all that it was ever given: ``y = sum of x so far``, in a variable inside."""
    b = Builder()
    main, start = b.graph(), b.graph()

    def handle(graph: Graph) -> int:
        options = schema.VarHandleOptionsT()
        options.container, options.sharedName = "", "sum"
        index = graph.tensor("handle", [], "resource")
        graph.operator("VAR_HANDLE", [], [index], ("VarHandleOptions", options))
        return index

    once = schema.CallOnceOptionsT()
    once.initSubgraphIndex = 1
    main.operator("CALL_ONCE", [], [], ("CallOnceOptions", once))
    x, old, y = (main.tensor(name, [1, 2]) for name in ("x", "old", "y"))
    variable = handle(main)
    main.operator("READ_VARIABLE", [variable], [old], ("ReadVariableOptions", schema.ReadVariableOptionsT()))
    main.operator("ADD", [old, x], [y], ("AddOptions", schema.AddOptionsT()))
    assign = ("AssignVariableOptions", schema.AssignVariableOptionsT())
    main.operator("ASSIGN_VARIABLE", [variable, y], [], assign)
    main.ends([x], [y])
    zero = start.tensor("zero", [1, 2], data=np.zeros((1, 2), np.float32))
    start.operator("ASSIGN_VARIABLE", [handle(start), zero], [], assign)
    start.ends([], [])
    return b


def hungry(side: int = 1 << 18) -> Builder:
    """Asks for ``side * side`` numbers: 256 GiB."""
    b = Builder()
    g = b.graph()
    x, y = g.tensor("x", [1]), g.tensor("y", [1])
    shape = g.tensor("shape", [2], "int32", data=np.array([side, side], np.int32))
    value = g.tensor("value", [], data=np.zeros((), np.float32))
    axes = g.tensor("axes", [2], "int32", data=np.array([0, 1], np.int32))
    huge, top = g.tensor("huge", [1, 1], free=[-1, -1]), g.tensor("top", [])
    g.operator("FILL", [shape, value], [huge], ("FillOptions", schema.FillOptionsT()))
    g.operator("REDUCE_MAX", [huge, axes], [top], ("ReducerOptions", schema.ReducerOptionsT()))
    g.operator("ADD", [x, top], [y], ("AddOptions", schema.AddOptionsT()))
    g.ends([x], [y])
    return b


def endless() -> Builder:
    """Loops while x equals x."""
    b = Builder()
    main, condition, body = b.graph(), b.graph(), b.graph()
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
    x, y = main.tensor("x", [1]), main.tensor("y", [1])
    main.operator("WHILE", [x], [y], ("WhileOptions", options))
    main.ends([x], [y])
    value, going = condition.tensor("value", [1]), condition.tensor("going", [1], "bool")
    condition.operator("EQUAL", [value, value], [going], ("EqualOptions", schema.EqualOptionsT()))
    condition.ends([value], [going])
    old, new = body.tensor("old", [1]), body.tensor("new", [1])
    body.operator("ADD", [old, old], [new], ("AddOptions", schema.AddOptionsT()))
    body.ends([old], [new])
    return b
