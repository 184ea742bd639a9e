"""The models of the benchmark, in the order in which they are tried."""

from __future__ import annotations

from typing import Final

from .convnet import make_digits_convnet
from .files import make_magika
from .pictures import mediapipe
from .recipe import Recipe
from .sound import MakeBasicPitch, MakeSilero, MakeWakeWord, make_silero_sequence, make_swift_f0
from .tables import (
    cancer_forest,
    cancer_logistic,
    diabetes_forest,
    digits_boosting,
    digits_mlp,
    exported,
    wine_svm,
)
from .transformer import make_minilm
from .traps import make_fused_orientation, make_quantized_convnet
from .writing import make_detection, make_orientation, make_recognition

_LOOP: Final = {"stateN": "state"}
_FEW: Final = (32, 72, 72)

RECIPES: Final = (
    Recipe(name="magika", metric="accuracy", output="target_label", make=make_magika),
    Recipe(
        name="ppocr-rec", metric="text", output="softmax_11.tmp_0", make=make_recognition, rows=(64, 120, 120)
    ),
    Recipe(name="ppocr-det", metric="mask", output="sigmoid_0.tmp_0", make=make_detection, rows=(32, 60, 60)),
    Recipe(
        name="ppocr-cls", metric="accuracy", output="save_infer_model/scale_0.tmp_1", make=make_orientation
    ),
    Recipe(
        name="silero-vad-if",
        metric="frames",
        output="output",
        sequences=True,
        states=_LOOP,
        rows=(24, 120, 120),
        make=MakeSilero("silero_vad.onnx", True, 264),
        note="two networks inside If",
    ),
    Recipe(
        name="silero-vad-op15",
        metric="frames",
        output="output",
        sequences=True,
        states=_LOOP,
        rows=(24, 120, 120),
        make=MakeSilero("silero_vad_16k_op15.onnx", True, 264),
    ),
    Recipe(name="silero-vad-sequence", metric="frames", output="speech_probs", make=make_silero_sequence),
    Recipe(name="swift-f0", metric="pitch", output="pitch", make=make_swift_f0, rows=(64, 100, 100)),
    Recipe(
        name="basic-pitch",
        metric="notes",
        output="StatefulPartitionedCall:1",
        make=MakeBasicPitch(".onnx"),
        rows=_FEW,
    ),
    Recipe(
        name="basic-pitch-tflite",
        metric="notes",
        output="StatefulPartitionedCall:1",
        engine="tflite",
        make=MakeBasicPitch(".tflite"),
        rows=_FEW,
    ),
    Recipe(
        name="face-detection",
        metric="cosine",
        engine="tflite",
        rows=(48, 72, 72),
        make=mediapipe(
            "face_detection/face_detection_short_range.tflite", "input", "face", 128, 128, signed=True
        ),
    ),
    Recipe(
        name="selfie",
        metric="cosine",
        engine="tflite",
        rows=(48, 72, 72),
        make=mediapipe("selfie_segmentation/selfie_segmentation.tflite", "input_1", "body", 256, 256),
    ),
    Recipe(
        name="face-landmark",
        metric="cosine",
        engine="tflite",
        rows=(48, 72, 72),
        make=mediapipe("face_landmark/face_landmark.tflite", "input_1", "face", 192, 192),
    ),
    Recipe(
        name="hand-landmark",
        metric="cosine",
        engine="tflite",
        rows=(48, 72, 72),
        make=mediapipe("hand_landmark/hand_landmark_lite.tflite", "input_1", "hand", 224, 224),
        note="no package has a photograph of hands: these are arms and cloth",
    ),
    Recipe(
        name="iris",
        metric="cosine",
        engine="tflite",
        rows=(48, 72, 72),
        make=mediapipe("iris_landmark/iris_landmark.tflite", "input_1", "eye", 64, 64),
    ),
    Recipe(
        name="pose-detection",
        metric="cosine",
        engine="tflite",
        rows=(48, 72, 72),
        make=mediapipe("pose_detection/pose_detection.tflite", "input_1", "body", 224, 224, signed=True),
    ),
    Recipe(name="digits-mlp", metric="accuracy", output="probabilities", make=exported(digits_mlp)),
    Recipe(name="digits-convnet", metric="accuracy", output="chances", make=make_digits_convnet),
    Recipe(
        name="cancer-logistic",
        metric="accuracy",
        output="probabilities",
        make=exported(cancer_logistic),
        rows=(64, 110, 110),
    ),
    Recipe(
        name="cancer-forest",
        metric="accuracy",
        output="probabilities",
        make=exported(cancer_forest, double=True),
        rows=(64, 110, 110),
        note="trees, double inputs",
    ),
    Recipe(
        name="digits-boosting",
        group="other",
        metric="accuracy",
        output="probabilities",
        make=exported(digits_boosting),
        note="trees",
    ),
    Recipe(
        name="diabetes-forest",
        group="other",
        metric="mae",
        output="variable",
        make=exported(diabetes_forest),
        rows=(41, 90, 90),
        note="trees, regression",
    ),
    Recipe(
        name="wine-svm",
        group="other",
        metric="accuracy",
        output="label",
        make=exported(wine_svm),
        rows=(19, 35, 35),
        note="support vectors",
    ),
    Recipe(
        name="minilm",
        group="other",
        metric="cosine",
        make=make_minilm,
        rows=(32, 80, 80),
        note="transformer, external data",
    ),
    Recipe(
        name="ppocr-cls-fused",
        group="other",
        metric="accuracy",
        output="save_infer_model/scale_0.tmp_1",
        make=make_fused_orientation,
        note="operators of com.microsoft",
    ),
    Recipe(
        name="okay-nabu",
        group="kept",
        metric="wake",
        output="StatefulPartitionedCall:0",
        engine="tflite",
        sequences=True,
        make=MakeWakeWord("okay_nabu.tflite", "okay naboo"),
        rows=(32, 100, 100),
        note="already int8, memory inside the engine",
    ),
    Recipe(
        name="alexa",
        group="kept",
        metric="wake",
        output="StatefulPartitionedCall:0",
        engine="tflite",
        sequences=True,
        make=MakeWakeWord("alexa.tflite", "alexa"),
        rows=(32, 100, 100),
        note="already int8, memory inside the engine",
    ),
    Recipe(
        name="digits-convnet-int8",
        group="kept",
        metric="accuracy",
        output="chances",
        make=make_quantized_convnet,
        note="already quantized by onnxruntime",
    ),
)
"""See `benchmarks.packager.prepared.Facts.group` for what the groups mean."""
