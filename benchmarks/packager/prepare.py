"""Makes the models and their data: ``python -m benchmarks.packager.prepare OUT [NAME...]``, a folder each.

Runs in the environment ``bench-data``. What is there and was made from the same sources is left alone.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np

from .models import RECIPES
from .models.recipe import ROOT, Recipe
from .prepared import SPLITS, Facts, read_prepared, write_prepared

_SEED = 71


def _source(recipe: Recipe) -> str:
    """Digest of the code and the locks that a folder is made from."""
    here = Path(__file__).parent
    digest = hashlib.sha256(recipe.name.encode())
    locks = [ROOT / "tests" / "models.lock", here / "models.lock", here / "envs" / "bench-data.lock"]
    for path in (*sorted((here / "models").glob("*.py")), here / "prepared.py", Path(__file__), *locks):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def prepare(recipe: Recipe, folder: Path) -> bool:
    """Make one folder; False if it was there. Raises what the recipe raises, ValueError for too few rows."""
    source = _source(recipe)
    try:
        if read_prepared(folder).facts.source == source:
            return False
    except (OSError, ValueError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prepared.json").unlink(missing_ok=True)
    data = recipe.make(folder)
    count = len(next(iter(data.inputs.values())))
    if count < sum(recipe.rows):
        raise ValueError(f"{recipe.name}: {count} rows, and {sum(recipe.rows)} are needed")
    order = np.random.default_rng(_SEED).permutation(count)
    ends = np.cumsum(recipe.rows)
    parts = dict(zip(SPLITS, np.split(order[: ends[-1]], ends[:-1]), strict=True))
    facts = Facts(
        name=recipe.name,
        group=recipe.group,
        engine=recipe.engine,
        metric=recipe.metric,
        output=recipe.output,
        sequences=recipe.sequences,
        states=recipe.states,
        note=recipe.note,
        source=source,
    )
    rows = {
        split: {name: array[part] for name, array in data.inputs.items()} for split, part in parts.items()
    }
    labels = {split: None if data.labels is None else data.labels[part] for split, part in parts.items()}
    write_prepared(folder, facts, rows, labels)
    return True


def main(arguments: list[str]) -> None:
    out, names = Path(arguments[0]), arguments[1:]
    for recipe in RECIPES:
        if not names or recipe.name in names:
            made = prepare(recipe, out / recipe.name)
            print(f"    {recipe.name}: {'made' if made else 'is there'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
