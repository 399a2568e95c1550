"""Results with typed attributes that also read as the objects which `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class JsonObject(Mapping[str, Any]):
    """Base of a typed result: `scores.val.loss` and `scores["val"]["loss"]` are the same."""

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        raise NotImplementedError

    def __getitem__(self, key: str) -> Any:
        return self.to_json()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_json())

    def __len__(self) -> int:
        return len(self.to_json())
