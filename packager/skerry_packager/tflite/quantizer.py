"""Integer variants by the LiteRT quantizer, an optional extra.

The quantizer runs in a process of its own: on some models it crashes. It also does nothing, without a word,
on models with fp16 weights, on files with operator codes of before 2020, and on some graphs; of sparse
weights ``static`` makes what does not load. All but the graphs are rewritten before, and what still is as it
was is told as such.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from skerry_contract.errors import ModelError
from skerry_runtime.worker.engines.tflite_guard import Outline, check_tflite

from ..engine import Feed
from ..scratch import scratch
from .floats import unpack_fp16, unpack_sparse
from .model import parse, schema, serialize, type_name

Mode = Literal["dynamic", "static"]
SIGNATURE: Final = "serving_default"
_INTEGERS: Final = frozenset({"INT8", "INT4", "UINT8", "INT2", "UINT4"})
_BOOT: Final = (
    "import json, sys; args = json.loads(sys.stdin.readline()); sys.path[:] = args.pop('sys_path'); "
    "from skerry_packager.tflite.quantizer_child import main; main(args)"
)
_MESSAGE: Final = 300


def installed() -> bool:
    return importlib.util.find_spec("litert_quantizer") is not None


def version() -> str:
    """Of the quantizer, where it is installed."""
    return importlib.metadata.version("litert-quantizer")


def quantize(source: bytes, mode: Mode, feeds: Sequence[Feed], seconds: float) -> bytes:
    """A model whose matrix products and convolutions calculate in int8; inputs and outputs stay as they are.

    Args:
        source: a float model.
        mode: ``dynamic`` finds the ranges of activations at each inference, ``static`` in `feeds`.
        feeds: complete inputs; only for ``static``.
        seconds: time limit.

    Raises:
        ModelError: the quantizer crashed, refused, took too long or changed nothing; the message says which.
    """
    before = check_tflite(source)
    model = parse(source)
    unpack_fp16(model)
    if mode == "static":
        unpack_sparse(model, dense=True)
    _name_tensors(model)
    _sign(model, before)
    with scratch("quantizer") as folder:
        (folder / "model.tflite").write_bytes(serialize(model))
        for number, feed in enumerate(feeds if mode == "static" else ()):
            arrays = {f"input{place}": feed[port.name] for place, port in enumerate(before.inputs)}
            np.savez(folder / f"feed{number}.npz", **arrays)  # type: ignore[arg-type] # numpy's stub
        names = [port.name for port in before.inputs]
        _run({"sys_path": sys.path, "folder": str(folder), "mode": mode, "names": names}, seconds)
        made = (folder / "quantized.tflite").read_bytes()
    quantized = parse(made)
    _sign(quantized, before)
    data = serialize(quantized)
    _check(before, check_tflite(data))
    if integer_weights(quantized) <= integer_weights(model):
        raise ModelError("the LiteRT quantizer changed nothing", hint="The storage variants remain.")
    return data


def integer_weights(model: Any) -> int:
    """Quantized constants that take part in the computation."""
    return sum(
        type_name(tensor) in _INTEGERS
        and tensor.quantization is not None
        and tensor.quantization.scale is not None
        and len(tensor.quantization.scale) > 0
        and model.buffers[tensor.buffer].data is not None
        and len(model.buffers[tensor.buffer].data) > 0
        for graph in model.subgraphs
        for tensor in graph.tensors
    )


def _run(request: dict[str, Any], seconds: float) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _BOOT],
            input=json.dumps(request).encode() + b"\n",
            capture_output=True,
            timeout=max(1.0, seconds),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"the LiteRT quantizer did not finish in {seconds:.0f} s") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:_MESSAGE]
        raise ModelError(
            f"the LiteRT quantizer crashed on this model (signal {-done.returncode})"
            if done.returncode < 0
            else f"the LiteRT quantizer refuses this model: {last}"
        )


def _name_tensors(model: Any) -> None:
    """The quantizer knows tensors by their names, which must differ."""
    taken: set[bytes] = set()
    for number, graph in enumerate(model.subgraphs):
        for index, tensor in enumerate(graph.tensors):
            name = tensor.name or b"tensor"
            if name in taken:
                name = name + f"/{number}.{index}".encode()
            tensor.name = name
            taken.add(name)


def _sign(model: Any, outline: Outline) -> None:
    """Give the model one signature: the source's names in the source's order, which the quantizer keeps."""
    kinds, graph = schema(), model.subgraphs[0]

    def entries(ports: Sequence[Any], indices: Any) -> list[Any]:
        found = []
        for port, index in zip(ports, indices, strict=True):
            entry = kinds.TensorMapT()
            entry.name, entry.tensorIndex = port.name, int(index)
            found.append(entry)
            if -1 in port.shape:
                graph.tensors[index].shapeSignature = np.array(port.shape, np.int32)
        return found

    signature = kinds.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
    signature.inputs = entries(outline.inputs, graph.inputs)
    signature.outputs = entries(outline.outputs, graph.outputs)
    model.signatureDefs = [signature]


def _check(before: Outline, after: Outline) -> None:
    for old, new in zip((*before.inputs, *before.outputs), (*after.inputs, *after.outputs), strict=True):
        if (old.name, old.datatype, old.shape) != (new.name, new.datatype, new.shape):
            raise ModelError(
                f"the LiteRT quantizer made {old.name!r} {new.datatype} {list(new.shape)}; "
                f"it was {old.datatype} {list(old.shape)}"
            )
