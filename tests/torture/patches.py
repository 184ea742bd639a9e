"""Other values in a child's modules: constants that make a wait short, classes that note what they do."""

from __future__ import annotations

from typing import Any


def patch(owner: Any, name: str, new: Any) -> None:
    """Replace something that is there: with another name it would change nothing."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner!r} has no {name}: nothing would be replaced")
    setattr(owner, name, new)
