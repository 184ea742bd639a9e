"""What may be copied from somebody's tracker into a bundle that the whole fleet can read.

Guarantee: only JSON scalars of bounded number and length; nothing whose name or form says that it is a
secret; no credentials inside of addresses. What is left out is counted or named in a note, never silent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

Scalar = str | int | float | bool | None

_MOST_VALUES: Final = 256
"""Of one field, such as the hyperparameters."""
_LONGEST_KEY: Final = 200
_LONGEST_TEXT: Final = 500
_DEEPEST: Final = 16
_EXACT: Final = 2**53
"""Whole numbers up to this survive every reader of JSON."""

_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS: Final = frozenset({
    "password", "passwd", "pwd", "passphrase", "secret", "secrets", "credential", "credentials", "cookie",
    "bearer", "apikey", "jwt", "oauth", "sas",
})  # fmt: skip
_SECRET_PAIRS: Final = (
    {"api", "key"}, {"access", "key"}, {"private", "key"}, {"account", "key"}, {"signing", "key"},
    {"ssh", "key"}, {"auth", "key"}, {"encryption", "key"}, {"connection", "string"},
)  # fmt: skip
_TOKENS_OF_TEXT: Final = frozenset({
    "pad", "eos", "bos", "cls", "sep", "mask", "unk", "special", "id", "ids", "type", "max", "min", "num",
    "per", "count", "length", "len", "dim", "embedding", "size",
})  # fmt: skip
"""Beside these words, ``token`` is a piece of text and no secret."""
_SECRET_FORMS: Final = re.compile(
    r"-----BEGIN|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}|\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{16,}"
    r"|\bxox[abp]-|\bglpat-|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\."
)
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_DATA_HASH: Final = frozenset({
    "data_hash", "dataset_hash", "data_digest", "dataset_digest", "data_sha256", "dataset_sha256", "data_md5",
    "dataset_md5", "train_data_hash", "training_data_hash",
})  # fmt: skip
_SPLIT: Final = re.compile(r"(?:data_?)?splits?[./_](.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was read from a reference."""

    told: Mapping[str, Any]
    """As `skerry_packager.lineage.read_lineage_file` gives it."""
    source: str
    """Kind of the tracker, for people."""
    notes: tuple[str, ...] = ()
    """What was left out, and what is odd."""


@dataclass(slots=True)
class Collector:
    """Gathers a lineage, keeping the module's promise."""

    source: str
    told: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _secrets: set[str] = field(default_factory=set)
    _odd: int = 0
    _cut: int = 0
    _many: int = 0

    def text(self, name: str, value: object, *, longest: int = _LONGEST_TEXT) -> None:
        """One text of the lineage; empty or None is left out."""
        if isinstance(value, str) and value.strip():
            cleaned = self._scalar(name, value.strip(), longest)
            if isinstance(cleaned, str):
                self.told[name] = cleaned

    def tree(self, name: str, values: Mapping[str, Any], *, separator: str = ".") -> None:
        """A table of the lineage, from a tree whose leaves are kept if they are scalars."""
        kept: dict[str, Scalar] = self.told.setdefault(name, {})
        for key, value in sorted(flatten(values, separator)):
            if is_secret(key):
                self._secrets.add(key[:_LONGEST_KEY])
            elif not isinstance(value, Scalar):
                self._odd += 1
            elif len(kept) >= _MOST_VALUES and key not in kept:
                self._many += 1
            else:
                cleaned = self._scalar(key, value, _LONGEST_TEXT)
                if cleaned is not None or value is None:
                    kept[key[:_LONGEST_KEY]] = cleaned
        if not kept:
            del self.told[name]

    def groups(self, name: str, groups: Mapping[str, Mapping[str, Any]]) -> None:
        """A table of small tables, such as the splits with their digests."""
        kept: dict[str, dict[str, Scalar]] = {}
        for key, group in sorted(groups.items()):
            if is_secret(key):
                self._secrets.add(key[:_LONGEST_KEY])
            elif len(kept) >= _MOST_VALUES:
                self._many += 1
            else:
                leaves = {part: value for part, value in group.items() if isinstance(value, Scalar)}
                cleaned = {part: self._scalar(part, value, _LONGEST_TEXT) for part, value in leaves.items()}
                kept[key[:_LONGEST_KEY]] = {
                    part: value for part, value in cleaned.items() if value is not None
                }
        if kept:
            self.told[name] = kept

    def numbers(self, name: str, values: Mapping[str, Any], *, separator: str = ".") -> None:
        """As `tree`, finite numbers only: metrics."""
        found = dict(flatten(values, separator))
        self.tree(name, {key: value for key, value in found.items() if is_number(value)}, separator=separator)

    def conventions(self, values: Mapping[str, Any]) -> None:
        """The data's hash and splits, where parameters of customary names hold them (``data_hash``,
        ``dataset_digest``, ``splits.train``, …) and nothing better is known."""
        flat = sorted(flatten(values, "."))
        for key, value in flat:
            if re.sub(r"[./ -]", "_", key).lower() in _DATA_HASH and "data_hash" not in self.told:
                self.text("data_hash", value)
        splits = {match[1]: value for key, value in flat if (match := _SPLIT.fullmatch(key))}
        if splits and "data_splits" not in self.told:
            self.tree("data_splits", splits)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def done(self) -> Imported:
        """Everything, with notes on what is missing from it."""
        if self._secrets:
            names = ", ".join(sorted(self._secrets)[:8])
            self.note(f"not copied, by their names or their form secrets: {names}")
        if self._odd:
            self.note(f"{self._odd} values that are no single number or text were left out")
        if self._cut:
            self.note(f"{self._cut} texts were cut to {_LONGEST_TEXT} characters")
        if self._many:
            self.note(f"{self._many} values more than {_MOST_VALUES} of a kind were left out")
        return Imported(told=dict(self.told), source=self.source, notes=tuple(self.notes))

    def _scalar(self, key: str, value: Scalar, longest: int) -> Scalar:
        """The value as it may be published; None if it may not."""
        if isinstance(value, float) and not math.isfinite(value):
            self._odd += 1
            return None
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT:
            return str(value)[:_LONGEST_TEXT]
        if not isinstance(value, str):
            return value
        if _SECRET_FORMS.search(value):
            self._secrets.add(key[:_LONGEST_KEY])
            return None
        value = without_credentials(value.encode("utf-8", "replace").decode())
        if len(value) > longest:
            self._cut += 1
        return value[:longest]


def is_secret(key: str) -> bool:
    """Whether a name speaks of a secret.

    >>> [is_secret(key) for key in ("wandb_api_key", "authToken", "DB_PASSWORD", "opt.secret", "hf_token")]
    [True, True, True, True, True]
    >>> [is_secret(key) for key in ("max_tokens", "pad_token_id", "tokenizer", "author", "keypoints", "key")]
    [False, False, False, False, False, False]
    """
    words = {word.lower() for word in _WORDS.findall(key)}
    if words & _SECRET_WORDS or any(pair <= words for pair in _SECRET_PAIRS):
        return True
    return "token" in words and not words & _TOKENS_OF_TEXT


def without_credentials(text: str) -> str:
    """An address without the user, the password and the signed parameters in it; other text as it is.

    >>> without_credentials("https://me:pw@host:8/x?sig=abc"), without_credentials("s3://bucket/x?version=2")
    ('https://host:8/x', 's3://bucket/x?version=2')
    """
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return text.rpartition("@")[2]
    query = parts.query
    if any(is_secret(key) or key.lower() in _SIGNED for key, _ in parse_qsl(query, keep_blank_values=True)):
        query = ""
    if "@" not in parts.netloc and query == parts.query:
        return text
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


_SIGNED: Final = frozenset({"sig", "signature", "x-amz-signature", "x-goog-signature", "key", "token"})


def flatten(
    tree: Mapping[str, Any], separator: str, prefix: str = "", depth: int = 0
) -> Iterable[tuple[str, Any]]:
    """The leaves of a tree by their joined names; what is nested too deep stays a tree, and so no scalar."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from flatten(value, separator, f"{name}{separator}", depth + 1)
        else:
            yield name, value


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parsed(text: str) -> Scalar:
    """A value that a tracker keeps as text.

    >>> parsed("0.01"), parsed("64"), parsed("True"), parsed("adam"), parsed("1e999"), parsed("None")
    (0.01, 64, True, 'adam', '1e999', None)
    """
    words: dict[str, Scalar] = {"True": True, "true": True, "False": False, "false": False, "None": None}
    if text in words:
        return words[text]
    if not _NUMBER.fullmatch(text) or len(text) > 40:
        return text
    if re.fullmatch(r"[+-]?\d+", text):
        # A leading zero is part of a name (a commit, a shard), not of a number.
        return text if re.match(r"[+-]?0\d", text) else int(text)
    return float(text) if math.isfinite(float(text)) else text
