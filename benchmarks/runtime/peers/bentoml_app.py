"""The model in BentoML: a service with one API, as its documentation has; environment ``serve-bentoml``."""

from __future__ import annotations

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service
class Digits:
    """ONNX Runtime with one thread; the file is named by ``BENCH_MODEL``."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self._name = self._session.get_inputs()[0].name

    @bentoml.api
    def infer(self, data: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._name: data.astype(np.float32)})[0]
