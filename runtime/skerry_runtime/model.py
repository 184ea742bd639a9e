"""In-process use: the device's own verification, engine, checks and windows, without a server.

``docs/python.md`` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from skerry_contract.errors import InputError
from skerry_contract.manifest import Manifest
from skerry_contract.summary import WindowSummary

from .bundle_file import Key, unpacked
from .worker.engines import DTYPES, Array
from .worker.generation import Generation, load_generation
from .worker.inference import Inference
from .worker.limits import DEFAULT_SERVE_LIMITS
from .worker.loaded import load_model
from .worker.observer import Observer
from .worker.serve.protocol import check_rows, check_tensor


class Model:
    """A loaded model; thread-safe."""

    def __init__(
        self, inference: Inference, reason: str, on_window: Callable[[WindowSummary], None] | None
    ) -> None:
        """Use `open`."""
        self._inference, self._on_window = inference, on_window
        self._specs = {spec.name: spec for spec in self.manifest.inputs}
        self.reason = reason
        """Why this variant of a bundle file; a sentence for people."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        key: Key | Sequence[Key] = (),
        device_class: str = "",
        ram_budget_bytes: int = 0,
        on_window: Callable[[WindowSummary], None] | None = None,
        window_seconds: float = 3600.0,
        window_rows: int = 100_000,
    ) -> Model:
        """Load a bundle file, or a generation folder of a device, and prove it by its golden samples.

        Args:
            path: a ``.skerry`` file, which is verified first; or a folder as the device's agent lays it out,
                verified already, of which every byte is hashed again.
            key: public keys of the engineers who may have signed the file, each as PEM text or as the path of
                a ``.pub`` file. A folder needs none.
            device_class: for bundles that are for certain classes of devices only.
            ram_budget_bytes: takes a variant of the file that needs no more; 0 sets no limit.
            on_window: called with each closed window summary, by the thread whose call closed it.
            window_seconds: length of a window.
            window_rows: rows after which a window closes early.

        Raises:
            BundleError: the file is damaged, or not signed by one of the keys; its children say which.
            IncompatibleError: no variant in the file runs here.
            SlotError: the folder is damaged.
            EngineError, MemoryBudgetError: the engine is missing or refuses the model.
            SelfTestError: the model does not answer as it did where it was packed.
        """
        path, reason = Path(path), ""
        with ExitStack() as stack:
            if not path.is_dir():
                keys = (key,) if isinstance(key, str | Path) else tuple(key)
                found = stack.enter_context(
                    unpacked(path, keys, device_class=device_class, ram_budget_bytes=ram_budget_bytes)
                )
                path, reason = found.folder, found.reason
            # The engine keeps the file that it maps, also when it has no name any more.
            model = load_model(load_generation(path))
        for index in range(len(model.generation.golden.samples)):
            model.run_golden(index)
        observer = Observer(model.generation, seconds=window_seconds, rows=window_rows)
        return cls(Inference(model, observer, DEFAULT_SERVE_LIMITS), reason, on_window)

    @property
    def manifest(self) -> Manifest:
        return self.generation.manifest

    @property
    def generation(self) -> Generation:
        return self._inference.model.generation

    @property
    def execution(self) -> str:
        """Where it runs: providers, threads, and what was wanted in vain."""
        return self._inference.model.session.execution

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
