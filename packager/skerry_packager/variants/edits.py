"""Small edits of a model that several generators share. In place."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from .. import graphs


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The node's attributes by name, as plain values."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def drop_unused(root: GraphProto) -> None:
    """Remove the initializers that nothing reads, in all graphs."""
    everywhere = list(graphs.all_graphs(root))
    used = {name for graph in everywhere for node in graph.node for name in node.input}
    used.update(value.name for graph in everywhere for value in graph.output)
    for graph in everywhere:
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in used:
                del graph.initializer[index]


def import_domain(model: ModelProto, domain: str, version: int) -> None:
    """Declare that the model uses the operators of `domain`, unless it does."""
    if all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(domain, version))
