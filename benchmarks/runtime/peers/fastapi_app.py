"""The model behind FastAPI, as its documentation would have it: a body model and a coroutine.

``fastapi_app.py MODEL PORT LOOP HTTP``, in the environment ``serve-fastapi``.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
app = FastAPI()


class Request(BaseModel):
    data: list[list[float]]


class Answer(BaseModel):
    data: list[list[float]]


@app.post("/infer")
async def infer(request: Request) -> Answer:
    """The call takes microseconds: a thread would cost more than it frees."""
    outputs = session.run(None, {name: np.array(request.data, np.float32)})
    return Answer(data=outputs[0].tolist())


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[2]), loop=sys.argv[3], http=sys.argv[4],
        log_level="warning", access_log=False,
    )  # fmt: skip
