"""HTML and SVG by function calls. Guarantee: text is escaped unless a function of this module made it.

Characters that could steer a reader (control, format, surrogate) are replaced, as on the terminal.
"""

from __future__ import annotations

import html
from typing import Final

from ..console import clean

_VOID: Final = frozenset({"meta", "br", "col"})


class Html(str):
    """Markup that was made here, and is not escaped again."""

    __slots__ = ()


Node = Html | str | int | float | None
"""What can be inside an element; None is left out."""


def el(name: str, /, *children: Node, **attributes: str | float | None) -> Html:
    """An element. ``class_`` is ``class``, ``aria_label`` is ``aria-label``; None leaves an attribute out.

    >>> el("b", "<x>", title='"', id=None)
    '<b title="&quot;">&lt;x&gt;</b>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(*children)}</{name}>")


def join(*nodes: Node) -> Html:
    """Several nodes behind each other."""
    return Html(
        "".join(node if isinstance(node, Html) else _text(node) for node in nodes if node is not None)
    )


def number(value: float) -> str:
    """A coordinate: two decimals at most.

    >>> number(3.0), number(1 / 3), number(-0.001)
    ('3', '0.33', '0')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "-0" if value <= -0.005 else "0")


def percent(share: float) -> str:
    """A coordinate of a drawing that is as wide as its place, kept inside of it."""
    return f"{number(100 * min(max(share, 0.0), 1.0))}%"


def _text(value: str | int | float) -> str:
    return html.escape("\n".join(map(clean, str(value).split("\n"))), quote=False)


def _attribute(value: str | float) -> str:
    return html.escape(clean(value), quote=True) if isinstance(value, str) else number(value)
