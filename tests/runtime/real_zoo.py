"""Real models out of packages, as `ZooModel`: with a name, their tensors and an input to be judged by."""

from __future__ import annotations

from functools import cache

import numpy as np
from tests.real_models import real_model
from tests.runtime.model_zoo import ZooModel

from skerry_contract.manifest import TensorSpec
from skerry_contract.monitoring import MonitoringSpec

_FILE_TYPES = "magika/magika/models/standard_v3_3/model.onnx"
_TEXT_DIRECTION = "rapidocr_onnxruntime/rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
_NOTHING_MONITORED = MonitoringSpec(rows=1, features=())


@cache
def file_types() -> ZooModel:
    """Says of 2,048 bytes of a file what kind of file it is (3 MB)."""
    data = np.random.default_rng(1).integers(0, 256, (1, 2048)).astype(np.int32)
    return ZooModel(
        name="filetypes",
        data=real_model(_FILE_TYPES).read_bytes(),
        inputs=(TensorSpec(name="bytes", datatype="INT32", shape=(-1, 2048)),),
        outputs=(TensorSpec(name="target_label", datatype="FP32", shape=(-1, 214)),),
        golden=({"bytes": data},),
        spec=_NOTHING_MONITORED,
    )


@cache
def text_direction() -> ZooModel:
    """Says of a line of text whether it stands on its head (600 kB)."""
    line = np.random.default_rng(2).random((1, 3, 48, 96)).astype(np.float32)
    return ZooModel(
        name="textline",
        data=real_model(_TEXT_DIRECTION).read_bytes(),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 48, 96)),),
        outputs=(TensorSpec(name="save_infer_model/scale_0.tmp_1", datatype="FP32", shape=(-1, 2)),),
        golden=({"x": line},),
        spec=_NOTHING_MONITORED,
    )
