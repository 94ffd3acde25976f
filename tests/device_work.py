"""Counts what a piece of work would ask of an accelerator, on a processor: operations, and waits of the host."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_WORK = ("empty", "new_empty", "_unsafe_view", "lift", "promote_types", "result_type", "_reshape_alias", "split")
"""Beside views: these only make room or look at shapes and types."""
_WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique", "unique", "equal", "is_pinned")
"""Operations whose result the host must know before it goes on."""
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
_CROSSING = {"tolist", "numpy", "cpu", "tensor", "as_tensor"}
"""Calls that take numbers from the device or bring them there, which a processor does without any operation."""


@dataclass
class DeviceWork:
    """What was counted."""

    operations: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


class _Operations(TorchDispatchMode):
    def __init__(self, work: DeviceWork) -> None:
        super().__init__()
        self._work = work

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split("::")[1].split(".")[0]
        if not function.is_view and not name.startswith(_NO_WORK):
            self._work.operations.append(name)
        by_mask = name in _INDEXED and any(one is not None and one.dtype == torch.bool for one in args[1])
        if name.startswith(_WAITS) or by_mask:
            self._work.waits.append(name)
        return function(*args, **(kwargs or {}))


class _Crossings(TorchFunctionMode):
    def __init__(self, work: DeviceWork) -> None:
        super().__init__()
        self._work = work

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # transformers makes the caches' layers of nothing, which brings nothing to the device
        if getattr(function, "__name__", "") in _CROSSING and not (args and isinstance(args[0], list) and not args[0]):
            self._work.waits.append(function.__name__)
        return function(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[DeviceWork]:
    """Count operations that compute (views do not) and waits, within the context and this thread."""
    work, from_numpy = DeviceWork(), torch.from_numpy

    def counting(array: Any) -> torch.Tensor:
        work.waits.append("from_numpy")
        return from_numpy(array)

    with mock.patch.object(torch, "from_numpy", counting), _Crossings(work), _Operations(work):
        yield work
