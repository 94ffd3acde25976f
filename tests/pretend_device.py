"""A second device, `pretend`, whose numbers the processor computes: what a GPU would refuse is refused without one.

Operations on tensors of two devices fail as they do on a GPU, and copies to and from the device are counted. Import it
in a process of its own: torch then knows an accelerator, and so do transformers and accelerate.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from typing_extensions import override

from semgrad_guard.models.device import PLAIN_WEIGHTS

NAME = "pretend"
_WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique", "unique", "equal")
_COPIES = {"copy_", "_to_copy"}
_FREE = {"copy_", "_has_compatible_shallow_copy_type"}
"""Operations that take tensors of two devices."""
_BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations whose indices may be on the processor, which costs a copy."""

crossings: list[str] = []
"""What brought numbers to a device or took some from it, or let the host wait, since the list was last emptied."""


refused: set[torch.dtype] = set()
"""Number formats that the device does not have for the moment."""


class PretendTensor(torch.Tensor):
    """A tensor of the pretended device, around one of the processor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    own: torch.Tensor
    """The processor's tensor."""

    @staticmethod
    def __new__(cls, own: torch.Tensor, device: torch.device | None = None, **changes: Any) -> Self:
        """Stand for a processor's tensor on the device; or for another one of the kind, with some changes."""
        device, own = device or own.device, getattr(own, "own", own)
        like = {"strides": own.stride(), "storage_offset": own.storage_offset(), "dtype": own.dtype, **changes}
        if own.dtype in refused:
            raise TypeError(own.dtype)
        made = torch.Tensor._make_wrapper_subclass(cls, own.size(), device=device, **like)
        made.own = own
        return made

    def __init__(self, *_: object, **__: object) -> None:
        """Leave it as it was made."""

    @override
    def tolist(self) -> Any:
        return self.cpu().tolist()

    @override
    def __repr__(self, *_: object, **__: object) -> str:
        return f"pretend({self.own!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: object, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the processor what belongs to one device."""
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function.name().split("::")[1].split(".")[0]
    leaves, form = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if name.startswith(_WAITS):
        crossings.append(name)
    if name not in _FREE:
        _require_one_device(function, tensors, _by_index(name, args))
    here = args[0].device if name == "copy_" else next(one.device for one in tensors if isinstance(one, PretendTensor))
    there = torch.device(kwargs.get("device") or here)
    own_args, own_kwargs = pytree.tree_unflatten([_own(leaf) for leaf in leaves], form)
    if name in _COPIES:
        _note(args[1] if name == "copy_" else args[0], there)
    if name == "histc":  # of whole numbers, which a processor does not count
        output = function(own_args[0].float(), *own_args[1:]).to(own_args[0].dtype)
    else:
        output = function(*own_args, **{**own_kwargs, **({"device": "cpu"} if kwargs.get("device") else {})})
    if there.type != NAME:
        return args[0] if name == "copy_" else output.clone() if name == "_to_copy" else output
    wrapped = pytree.tree_map_only(torch.Tensor, lambda tensor: PretendTensor(tensor, there), output)
    return wrapped if name in {"_to_copy", "histc"} else return_and_correct_aliasing(function, args, kwargs, wrapped)


def _by_index(name: str, args: Any) -> list[torch.Tensor]:
    """Return the indices on the processor by which a tensor of the device is looked up; they are copied there."""
    if name not in _BY_INDEX or not isinstance(args[0], PretendTensor):
        return []
    found = [index for index in args[1] if index is not None and index.device != args[0].device]
    for index in found:
        _note(index, args[0].device)
    return found


def _require_one_device(function: Any, tensors: list[torch.Tensor], but: list[torch.Tensor]) -> None:
    """Fail as a GPU does; a single number of the processor is no tensor to it."""
    counted = [one for one in tensors if one.dim() or one.device.type != "cpu"]
    devices = {str(one.device) for one in counted if not any(one is other for other in but)}
    if len(devices) > 1:
        what = f"{function} was given tensors of {' and '.join(sorted(devices))}"
        raise RuntimeError(what)


def _own(one: Any) -> Any:
    return one.own if isinstance(one, PretendTensor) else one


def _note(source: torch.Tensor, there: torch.device) -> None:
    if source.device != there and source.numel():  # transformers makes its caches' layers of nothing
        crossings.append(f"{source.device} to {there}")


class _Device(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _place(device: torch.device | None) -> torch.device:
    return torch.device(NAME, (device and device.index) or 0)


def _empty(size: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: object) -> torch.Tensor:
    order = memory_format or torch.contiguous_format
    return PretendTensor(torch.empty(size, dtype=dtype, memory_format=order), _place(device))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: object) -> torch.Tensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype), _place(device))


def _copy_from(source: torch.Tensor, there: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    _note(source, there.device)
    _own(there).copy_(_own(source))
    return there


def _register() -> torch.library.Library:
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Device())
    library = torch.library.Library("aten", "IMPL")
    made = {"empty.memory_format": _empty, "empty_strided": _empty_strided, "_copy_from": _copy_from}
    for name, function in made.items():
        library.impl(name, function, "PrivateUse1")
    return library


PLAIN_WEIGHTS.add(PretendTensor)
# else a weight that is converted would keep its old numbers
torch.__future__.set_swap_module_params_on_conversion(True)
_registered = _register()
