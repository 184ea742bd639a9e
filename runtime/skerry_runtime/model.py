"""In-process use: the device's own engine, checks and windows, without a server.

>>> from skerry_runtime.model import Model                      # doctest: +SKIP
>>> with Model.open("/var/lib/skerry/gens/3") as model:         # doctest: +SKIP
...     model.infer({"image": pixels})["probabilities"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from skerry_contract.errors import InputError
from skerry_contract.manifest import Manifest
from skerry_contract.summary import WindowSummary

from .worker.engines import DTYPES, Array
from .worker.generation import Generation, load_generation
from .worker.inference import Inference
from .worker.limits import DEFAULT_SERVE_LIMITS
from .worker.loaded import load_model
from .worker.observer import Observer
from .worker.serve.protocol import check_rows, check_tensor


class Model:
    """A loaded model; thread-safe."""

    def __init__(self, inference: Inference, on_window: Callable[[WindowSummary], None] | None) -> None:
        """Use `open`."""
        self._inference, self._on_window = inference, on_window
        self._specs = {spec.name: spec for spec in self.manifest.inputs}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        on_window: Callable[[WindowSummary], None] | None = None,
        window_seconds: float = 3600.0,
        window_rows: int = 100_000,
    ) -> Model:
        """Load a generation folder of a device and prove it by its golden samples.

        Args:
            folder: as the device's agent lays it out, already verified; every byte is hashed again.
            on_window: called with each closed window summary, by the thread whose call closed it.
            window_seconds: length of a window.
            window_rows: rows after which a window closes early.

        Raises:
            SlotError: the folder is damaged.
            EngineError, MemoryBudgetError: the engine is missing or refuses the model.
            SelfTestError: the model does not answer as it did where it was packed.
        """
        model = load_model(load_generation(Path(folder)))
        for index in range(len(model.generation.golden.samples)):
            model.run_golden(index)
        observer = Observer(model.generation, seconds=window_seconds, rows=window_rows)
        return cls(Inference(model, observer, DEFAULT_SERVE_LIMITS), on_window)

    @property
    def manifest(self) -> Manifest:
        return self.generation.manifest

    @property
    def generation(self) -> Generation:
        return self._inference.model.generation

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: an array for each input, of the manifest's datatype and shape.

        Raises:
            InputError: the arrays are not what the model takes, or not finite and so is the answer.
            EngineError, MemoryBudgetError: the model failed.
            OverloadedError: too many threads wait.
        """
        if set(inputs) != set(self._specs):
            raise InputError(
                f"the inputs are {sorted(inputs)}", hint=f"The model takes: {', '.join(self._specs)}."
            )
        for name, array in inputs.items():
            datatype = next((key for key, dtype in DTYPES.items() if dtype == array.dtype), str(array.dtype))
            check_tensor(self._specs[name], datatype, array.shape)
        check_rows(inputs, self._specs)
        answer = self._inference.infer(inputs)
        self._inference.record(answer)
        self._hand_out()
        return answer.outputs

    def close_window(self) -> None:
        """End the open window now; it goes to ``on_window`` unless it is empty."""
        self._inference.observer.close_window()
        self._hand_out()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_window()

    def _hand_out(self) -> None:
        for summary in self._inference.observer.take():
            if self._on_window is not None:
                self._on_window(summary)
