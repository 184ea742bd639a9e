"""``skerry-runtime bench``: latency and throughput of a model's local endpoint, as its clients see them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skerry_contract.errors import NotFoundError

from .cli_common import DONE, ask, config_of, print_json, table
from .cli_models import model_of
from .config import DeviceConfig


def bench(options: argparse.Namespace) -> int:
    """Run the command."""
    config = config_of(options)
    name, model = model_of(ask(config, {"do": "status"}), options.model)
    folder = active_folder(config, name, model)
    # Only this command pays for numpy.
    from .bench_client import golden_requests, measure

    requests = golden_requests(folder, name)
    figures = [
        measure(model["socket"], kind, of_kind, options.requests, options.connections)
        for kind, of_kind in requests.items()
    ]
    result: dict[str, Any] = {
        "model": name,
        "version": model["active"]["version"],
        "variant": model["active"]["variant"],
        "engine": model["active"]["engine"],
        "socket": model["socket"],
        "golden_samples": len(requests["json"]),
        "figures": [asdict(figure) for figure in figures],
    }
    if options.json:
        print_json(result)
        return DONE
    what = f"{name} {result['version']} ({result['variant']} on {result['engine']})"
    print(f"{what}, {options.requests} requests each")
    rows = [
        (f.kind, *(f"{us / 1000:.3f}" for us in (f.p50_us, f.p95_us, f.p99_us)), f"{f.per_second:.0f}")
        for f in figures
    ]
    print(table(("tensors", "p50 ms", "p95 ms", "p99 ms", f"requests/s at {options.connections}"), rows))
    print("These requests count in the model's current window: it is drift data of golden samples now.")
    return DONE


def active_folder(config: DeviceConfig, name: str, model: Any) -> Path:
    """The generation that answers. Raises `NotFoundError` if nothing does."""
    if not model["active"]:
        raise NotFoundError(f"nothing answers for {name}", hint="See 'skerry-runtime status'.")
    return config.data_dir / "models" / name / "gens" / str(model["active"]["generation"])
