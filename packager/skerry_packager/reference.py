"""The monitoring spec: what is normal, learnt from real rows, for devices to bin against.

Features come from the runtime's own feature code and are counted by its own counting code, so that the
reference and a device never differ by anything but the data. Only inputs with the rows on axis 0 are
watched: a sampling rate is no observation, and neither is a state. Of a stateful model a row is a single step
of fp32's rollouts, because steps are what devices count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skerry_contract.monitoring import (
    IMAGE_STATISTICS,
    SCORE_BINS,
    TENSOR_STATISTICS,
    CategoryFeature,
    ClassPrediction,
    EmbeddingReference,
    Feature,
    FloatFeature,
    MonitoringSpec,
    Source,
)
from skerry_runtime.worker.features import embedding_vectors, extract, fourier_basis, predictions
from skerry_runtime.worker.windows import count_plain

from .datasets import Dataset
from .engine import Feed, Session
from .metrics import Form, Head, Metric
from .rollouts import Moment, moments

MAX_ROWS: Final = 2048
MAX_COLUMNS: Final = 64
"""An input with more numbers a row is summed up by statistics."""
MAX_OUTPUT_COLUMNS: Final = 16
BINS: Final = 32
TAILS: Final = (0.001, 0.01, 0.99, 0.999)
MAX_CATEGORIES: Final = 31
EMBEDDING_DIMENSIONS: Final = 64
MAX_EMBEDDING: Final = 4096
"""A longer output is a picture or a list of boxes, and its basis more than a small device should hold."""
_MOST_BYTES: Final = 256 << 20
"""What is kept of all rows together, about; larger rows are fewer."""
_NEIGHBOURS: Final = 256
"""Vectors whose distances are looked at."""
_IMAGE_CHANNELS: Final = (1, 3, 4)
_FORMS: Final = {Form.PROBABILITIES: "probabilities", Form.LOGITS: "logits", Form.LABEL: "label"}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The reference: inputs and fp32's scored output of every row."""

    feeds: tuple[Feed, ...]
    outputs: tuple[Mapping[str, np.ndarray], ...]
    labels: tuple[float | None, ...]
    """Class of each row, or None where nobody said."""
    states: frozenset[str]
    """Inputs that the model itself makes."""


def build_spec(session: Session, datasets: Sequence[Dataset], head: Head) -> MonitoringSpec:
    """Learn a spec from data sets and the fp32 model's answers on them.

    Args:
        session: the fp32 model.
        datasets: reference data; together at most `MAX_ROWS` rows (or steps) are used, fewer if they are
            large, evenly spread.
        head: the output that people look at.

    Raises:
        ModelError: the model fails on a row.
    """
    rows = _collect(session, datasets, session.output_names[head.output])
    sources = _input_sources(rows)
    prediction = _prediction(session, rows, head)
    embedding = _embedding(session, rows, head)
    if prediction is None and embedding is None:
        sources |= _output_sources(session, rows, head)
    features: list[Feature] = []
    if sources:
        table = np.concatenate(
            [
                extract(list(sources.values()), feed, out)
                for feed, out in zip(rows.feeds, rows.outputs, strict=True)
            ]
        )
        kinds = {name: array.dtype.kind for name, array in rows.feeds[0].items()}
        for index, (name, source) in enumerate(sources.items()):
            feature = _feature(
                name, source, table[:, index], source.kind == "column" and kinds[source.tensor] in "biu"
            )
            if feature is not None:
                features.append(feature)
    return MonitoringSpec(
        rows=len(rows.feeds), features=tuple(features), prediction=prediction, embedding=embedding
    )


def _collect(session: Session, datasets: Sequence[Dataset], scored: str) -> _Rows:
    limit = _most_rows(session, datasets[0], scored)
    total = sum(data.steps(row) for data in datasets for row in range(len(data)))
    feeds: list[Feed] = []
    outputs: list[Mapping[str, np.ndarray]] = []
    labels: list[float | None] = []
    for data in datasets:
        steps = sum(map(data.steps, range(len(data))))
        most = steps if total <= limit else max(1, limit * steps // total)
        for moment in moments(session, data, most):
            feeds.append(moment.feed)
            outputs.append({scored: moment.outputs[session.output_names.index(scored)]})
            labels.append(_label(data, moment))
    states = frozenset(name for data in datasets if data.memory for name in data.memory.loops.values())
    return _Rows(tuple(feeds), tuple(outputs), tuple(labels), states)


def _most_rows(session: Session, data: Dataset, scored: str) -> int:
    """How many rows may be kept, by the first of them: features are calculated in float64."""
    first = next(moments(session, data, 1))
    states = {} if data.memory is None else data.memory.loops
    kept = sum(first.feed[name].nbytes for name in states.values())
    kept += 8 * first.outputs[session.output_names.index(scored)].size
    return int(np.clip(_MOST_BYTES // max(kept, 1), 1, MAX_ROWS))


def _label(data: Dataset, moment: Moment) -> float | None:
    """Of one inference: the label of a whole sequence says nothing of its steps."""
    if data.labels is None or data.labels.dtype.kind not in "iubf":
        return None
    label = data.labels[moment.row]
    if data.sequences:
        label = label[moment.step] if data.step_labels else np.empty(0)
    return float(label) if np.ndim(label) == 0 else None


def _input_sources(rows: _Rows) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for name, array in rows.feeds[0].items():
        if name in rows.states or not all(_has_row_axis(feed[name]) for feed in rows.feeds):
            continue
        layout = _image_layout(array)
        columns = array[0].size
        if layout:
            found |= {
                f"{name}.{statistic}": Source(kind="image", tensor=name, statistic=statistic, layout=layout)
                for statistic in IMAGE_STATISTICS
            }
        elif array.ndim == 2 and columns <= MAX_COLUMNS:
            found |= {
                f"{name}[{index}]": Source(kind="column", tensor=name, index=index)
                for index in range(columns)
            }
        else:
            found |= {
                f"{name}.{statistic}": Source(kind="tensor", tensor=name, statistic=statistic)
                for statistic in TENSOR_STATISTICS
            }
    return found


def _image_layout(array: np.ndarray) -> str:
    """``NCHW`` or ``NHWC`` for what looks like images, else nothing."""
    if array.ndim != 4:
        return ""
    if array.shape[1] in _IMAGE_CHANNELS and min(array.shape[2:]) >= 3:
        return "NCHW"
    if array.shape[3] in _IMAGE_CHANNELS and min(array.shape[1:3]) >= 3:
        return "NHWC"
    return ""


def _output_sources(session: Session, rows: _Rows, head: Head) -> dict[str, Source]:
    """The numbers of the scored output, where they are few."""
    name = session.output_names[head.output]
    shapes = {out[name].shape for out in rows.outputs}
    first = rows.outputs[0][name]
    if len(shapes) != 1 or not _has_row_axis(first) or first[0].size > MAX_OUTPUT_COLUMNS:
        return {}
    return {
        f"{name}[{index}]": Source(kind="output", tensor=name, index=index) for index in range(first[0].size)
    }


def _has_row_axis(array: np.ndarray) -> bool:
    """Whether one inference of one row has that row on axis 0."""
    return array.ndim >= 1 and array.shape[0] == 1 and array.dtype.kind in "biuf" and array.size > 0


def _feature(name: str, source: Source, column: Floats, categorical: bool) -> Feature | None:
    """None if no value of the column is finite."""
    finite = np.sort(column[np.isfinite(column)])
    if not len(finite):
        return None
    null_rate = 1.0 - len(finite) / len(column)
    values, counts = np.unique(finite, return_counts=True)
    feature: Feature
    if categorical and len(values) <= MAX_CATEGORIES:
        feature = CategoryFeature(
            name=name, source=source, values=tuple(map(float, values)), probabilities=(), null_rate=null_rate
        )
    else:
        sd = float(finite.std())
        spread = float(np.quantile(finite, 0.75) - np.quantile(finite, 0.25))
        least = 1e-6 * max(1.0, float(np.abs(finite).max()))  # a constant has no scale of its own
        feature = FloatFeature(
            name=name,
            source=source,
            edges=_edges(finite, values[counts >= len(finite) / BINS]),
            probabilities=(),
            mean=float(finite.mean()),
            sd=max(sd, least),
            iqr=max(spread, sd, least) if spread < least else spread,
            null_rate=null_rate,
        )
    counted = count_plain(feature, finite.tolist()).counts
    return replace(feature, probabilities=tuple(count / len(finite) for count in counted))


def _edges(finite: Floats, atoms: Floats) -> tuple[float, ...]:
    """Range, quantiles and tails; every atom gets a bin of its own."""
    levels = [*TAILS, *(step / BINS for step in range(1, BINS))]
    edges = {float(finite[0]), float(finite[-1]), *map(float, np.quantile(finite, levels))}
    for atom in map(float, atoms):
        edges |= {atom, math.nextafter(atom, math.inf)}
    return tuple(sorted(edges))


def _prediction(session: Session, rows: _Rows, head: Head) -> ClassPrediction | None:
    name = session.output_names[head.output]
    if head.form not in _FORMS or any(not _has_row_axis(out[name]) for out in rows.outputs):
        return None
    sizes = {out[name].size for out in rows.outputs}
    if head.form is Form.LABEL:
        labels = np.concatenate([np.ravel(out[name]) for out in rows.outputs])
        if sizes != {1} or labels.min() < 0 or labels.max() > 4095:
            return None
        classes = int(labels.max()) + 1
    else:
        if len(sizes) != 1:
            return None
        classes = sizes.pop()
        if rows.outputs[0][name].shape[-1] != classes:
            return None  # one answer per place, such as the text in an image, is no single prediction
    spec = ClassPrediction(output=name, form=_FORMS[head.form], classes=classes, probabilities=())
    answers = [predictions(spec, out) for out in rows.outputs]
    predicted = np.concatenate([classes for classes, _ in answers])
    scores = np.concatenate([score for _, score in answers])
    counts = np.bincount(predicted, minlength=classes)
    calibration: tuple[float, ...] = ()
    # A row of which fp32 gives NaN has no score to be right by.
    known = np.array([label is not None for label in rows.labels]) & np.isfinite(scores)
    if known.any() and head.form is not Form.LABEL:
        truth = np.array([label for label, good in zip(rows.labels, known, strict=True) if good])
        calibration = isotonic_bins(scores[known], predicted[known] == truth)
    return replace(
        spec, probabilities=tuple(float(count) / len(predicted) for count in counts), calibration=calibration
    )


def isotonic_bins(scores: Floats, correct: NDArray[np.bool_]) -> tuple[float, ...]:
    """Accuracy at each of the `SCORE_BINS` score bins, never falling: pool adjacent violators (Ayer 1955).

    Bins without rows take the value of the nearest one below that has some, or of the first one.
    """
    bins = np.minimum((scores * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    weights = np.bincount(bins, minlength=SCORE_BINS)
    hits = np.bincount(bins, weights=correct.astype(np.float64), minlength=SCORE_BINS)
    pools: list[tuple[float, float, list[int]]] = []
    for index in np.flatnonzero(weights):
        pools.append((float(hits[index]), float(weights[index]), [int(index)]))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            (hit, weight, members), (hit2, weight2, members2) = pools[-2], pools[-1]
            pools[-2:] = [(hit + hit2, weight + weight2, members + members2)]
    value_at = {index: hit / weight for hit, weight, members in pools for index in members}
    return tuple(_filled(value_at))


def _filled(value_at: Mapping[int, float]) -> Iterator[float]:
    value = value_at[min(value_at)]
    for index in range(SCORE_BINS):
        value = value_at.get(index, value)
        yield value


def _embedding(session: Session, rows: _Rows, head: Head, seed: int = 0) -> EmbeddingReference | None:
    """Random Fourier features with the median distance as bandwidth (Rahimi and Recht 2007)."""
    name = session.output_names[head.output]
    sizes = {out[name].size for out in rows.outputs}
    if (
        head.metric is not Metric.COSINE
        or len(sizes) != 1
        or max(sizes) > MAX_EMBEDDING
        or any(not _has_row_axis(out[name]) for out in rows.outputs)
    ):
        return None
    source = Source(kind="output", tensor=name)
    vectors = np.concatenate([embedding_vectors(source, {}, out) for out in rows.outputs])
    vectors = vectors[np.isfinite(vectors).all(axis=1)]
    if len(vectors) < 2:
        return None
    some = vectors[:: max(1, len(vectors) // _NEIGHBOURS)][:_NEIGHBOURS]
    # One vector against the rest at a time: all pairs at once are as many vectors as there are pairs.
    distances = [np.linalg.norm(some[place + 1 :] - some[place], axis=1) for place in range(len(some) - 1)]
    bandwidth = float(np.median(np.concatenate(distances))) or 1.0
    frequencies, phases = fourier_basis(seed, EMBEDDING_DIMENSIONS, bandwidth, vectors.shape[1])
    norms = np.linalg.norm(vectors, axis=1)
    edges = np.unique(np.quantile(norms, np.linspace(0, 1, 17)))
    cells = np.bincount(np.searchsorted(edges, norms, side="right"), minlength=len(edges) + 1)
    return EmbeddingReference(
        source=source,
        seed=seed,
        dimensions=EMBEDDING_DIMENSIONS,
        bandwidth=bandwidth,
        mean=tuple(map(float, np.cos(vectors @ frequencies + phases).mean(axis=0))),
        norm_edges=tuple(map(float, edges)),
        norm_probabilities=tuple(float(count) / len(norms) for count in cells),
    )
