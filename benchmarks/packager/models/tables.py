"""Models of scikit-learn on the data that comes with it, exported by skl2onnx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .recipe import Data

Fit = Callable[[], tuple[Any, np.ndarray, np.ndarray]]
"""A fitted estimator, and the rows and labels that it has not seen."""


def _halves(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    order = np.random.default_rng(51).permutation(len(x))
    half = len(x) // 2
    return x[order[:half]], y[order[:half]], x[order[half:]], y[order[half:]]


def digits_mlp() -> tuple[Any, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y, rest, labels = _halves(*load_digits(return_X_y=True))
    return MLPClassifier((128, 64), max_iter=200, random_state=0).fit(x / 16, y), rest / 16, labels


def cancer_logistic() -> tuple[Any, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, rest, labels = _halves(*load_breast_cancer(return_X_y=True))
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y), rest, labels


def cancer_forest() -> tuple[Any, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier

    x, y, rest, labels = _halves(*load_breast_cancer(return_X_y=True))
    return RandomForestClassifier(100, random_state=0).fit(x, y), rest, labels


def digits_boosting() -> tuple[Any, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.ensemble import GradientBoostingClassifier

    x, y, rest, labels = _halves(*load_digits(return_X_y=True))
    return GradientBoostingClassifier(n_estimators=40, random_state=0).fit(x, y), rest, labels


def diabetes_forest() -> tuple[Any, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_diabetes
    from sklearn.ensemble import RandomForestRegressor

    x, y, rest, labels = _halves(*load_diabetes(return_X_y=True))
    deviation = np.abs(y - y.mean()).mean()
    fitted = RandomForestRegressor(100, random_state=0).fit(x, y / deviation)
    return fitted, rest, labels / deviation


def wine_svm() -> tuple[Any, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_wine
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    x, y, rest, labels = _halves(*load_wine(return_X_y=True))
    return make_pipeline(StandardScaler(), SVC(random_state=0)).fit(x, y), rest, labels


def exported(fit: Fit, double: bool = False) -> Callable[[Path], Data]:
    """A `Make` that exports with single or double precision inputs."""

    def make(folder: Path) -> Data:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

        estimator, rows, labels = fit()
        kind = DoubleTensorType if double else FloatTensorType
        classifies = hasattr(estimator, "classes_")
        model = convert_sklearn(
            estimator,
            initial_types=[("input", kind([None, rows.shape[1]]))],
            options={id(estimator): {"zipmap": False}} if classifies else None,
            target_opset={"": 18, "ai.onnx.ml": 3},
        )
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        typed = rows.astype(np.float64 if double else np.float32)
        return Data({"input": typed[:, None, :]}, labels)

    return make
