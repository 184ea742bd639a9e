"""The model in MLServer: a custom runtime, as its documentation has it; environment ``serve-mlserver``."""

from __future__ import annotations

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """ONNX Runtime with one thread; the file is the ``uri`` of ``model-settings.json``."""

    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        uri = self.settings.parameters.uri
        self._session = ort.InferenceSession(uri, options, providers=["CPUExecutionProvider"])
        self._names = [node.name for node in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feed = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        found = self._session.run(None, feed)
        outputs = [NumpyCodec.encode_output(name, out) for name, out in zip(self._names, found, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
