"""The weights of a loaded model: their device, their digest, and the lock of the model's users."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from semgrad_guard.errors import ModelSettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from torch import Tensor
    from transformers import PreTrainedModel


_PACKS_WEIGHTS = "support_avx512bf16_for_cpu"
"""Attribute by which bitsandbytes' 4-bit layers decide to pack their weights for good, on some processors, when they
first run in eval mode; its kernel for packed weights gives no gradients."""


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Put a model into eval mode, and restore the mode of every module afterwards, even after an error.

    4-bit layers of bitsandbytes are kept from packing their weights meanwhile.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    packing = [module for module in modules if vars(module).get(_PACKS_WEIGHTS)]
    if training:
        model.eval()
    for module in packing:
        setattr(module, _PACKS_WEIGHTS, False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module in packing:
            setattr(module, _PACKS_WEIGHTS, True)


_COMPILED = "_compiled_call_impl"
"""Attribute by which a module knows that it was compiled in place."""


@contextmanager
def plain_tensors() -> Generator[None]:
    """Compute without gradients but with ordinary tensors of the model's type, whatever context the caller is in.

    A KV cache written under `torch.inference_mode` could not be used in a later backward pass, and under `autocast` an
    answer and its score would depend on who asks.
    """
    kinds = {"cpu", accelerator.type if (accelerator := torch.accelerator.current_accelerator()) else "cpu"}
    with torch.inference_mode(mode=False), torch.no_grad(), ExitStack() as undo:
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                undo.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def uncompiled(model: nn.Module) -> Generator[None]:
    """Run the modules that `Module.compile()` has compiled as they were written, within the context.

    A compiled module would be traced again for each set of hooks, and does not call what stands in for its blocks.
    """
    compiled = [module for module in model.modules() if vars(module).get(_COMPILED) is not None]
    calls = [vars(module)[_COMPILED] for module in compiled]
    for module in compiled:
        setattr(module, _COMPILED, None)
    try:
        yield
    finally:
        for module, call in zip(compiled, calls, strict=True):
            setattr(module, _COMPILED, call)


def require_device(device: str | torch.device | None) -> None:
    """Check that a device is there; `None` asks for none.

    Raises:
        ModelSettingError: torch does not know it or cannot use it on this machine, or it holds no numbers.
    """
    try:
        is_there = device is None or not torch.empty(1, device=device).is_meta
    except (RuntimeError, AssertionError):  # torch raises the latter if it was built without the device
        is_there = False
    if not is_there:
        accelerator = torch.accelerator.current_accelerator()
        allowed = "cpu" if accelerator is None else f"cpu, {accelerator.type}"
        raise ModelSettingError("device", str(device), f"{allowed} on this machine")


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing in other threads, which may use the model without taking its lock."""
    this_thread = threading.get_ident()

    # torch looks up separately whether a hook takes keyword arguments: another thread that meets the hook while it is
    # being removed calls it without them
    def called(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == this_thread else None

    return called


_LOOK_S = 0.02
"""How often, in seconds, a thread that waits for a lock checks whether it should give up."""

_locks: WeakKeyDictionary[object, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(thing: object) -> threading.RLock:
    """Return the re-entrant lock of a model or tokenizer; it exists as long as that object."""
    with _guard:
        return _locks.setdefault(thing, threading.RLock())


@contextmanager
def held(lock: threading.RLock, should_end: Callable[[], bool]) -> Generator[bool]:
    """Hold a lock and yield True; or yield False, without the lock, if `should_end` returns True while waiting."""
    owned = lock.acquire(blocking=False)
    while not owned and not should_end():
        owned = lock.acquire(timeout=_LOOK_S)
    try:
        yield owned
    finally:
        if owned:
            lock.release()


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device that a model expects token ids on: that of its input embeddings, or where they are computed."""
    embeddings = model.get_input_embeddings()
    weight: Tensor | None = getattr(embeddings, "weight", None)
    if weight is not None and not weight.is_meta:
        return weight.device
    computed: Any = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    return model.device if computed is None else torch.device(computed)


def offloaded_weight(model: nn.Module, name: str) -> Tensor | None:
    """Return an offloaded weight by its name in the model, or `None` if there is none."""
    path, _, own = name.rpartition(".")
    weights: Any = next((hook.weights_map for hook in _hooks(model.get_submodule(path)) if hook.weights_map), None)
    try:
        return None if weights is None else weights[own]
    except KeyError:
        return None


def missing_weight(model: nn.Module) -> str | None:
    """Return the name of a weight that is neither in memory nor offloaded, or `None` if none is missing."""
    names = (name for name, weight in model.named_parameters() if weight.is_meta or _is_freed(weight))
    return next((name for name in names if offloaded_weight(model, name) is None), None)


NO_FLOAT64 = {"mps"}
"""Kinds of devices without float64: Apple's GPUs."""


def widest_float(device: torch.device) -> torch.dtype:
    """Return the most exact number format of a device, in which long sums are taken."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


PLAIN_WEIGHTS = {nn.Parameter}
"""Types of weights that are plain numbers; those of quantised layers are of other types."""


def has_plain_weight(layer: nn.Module) -> bool:
    """Return whether a layer's weight is a plain matrix, which may be sliced and multiplied directly."""
    return type(layer.weight) in PLAIN_WEIGHTS


def _is_freed(weight: Tensor) -> bool:
    """Return whether the memory of a weight was given back."""
    if type(weight) is not nn.Parameter:
        return False
    return weight.untyped_storage().nbytes() < weight.numel() * weight.element_size()


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook: Any = getattr(module, "_hf_hook", None)
    several: Any = getattr(hook, "hooks", (hook,))
    yield from (hook for hook in several if getattr(hook, "weights_map", None) is not None)


_SAMPLES = 64
"""How many entries of each weight enter the digest."""
_PASSING = {"_name_or_path", "_attn_implementation", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Config keys that say how a model was loaded, not what it is."""


def weights_digest(model: PreTrainedModel) -> str:
    """Return a digest of the config and of evenly spaced entries of every weight.

    It is the same in every process and for every copy of the same files. It differs for other weights of the same
    architecture, for a fine-tuned or quantised copy, and for another number format.
    """
    digest = hashlib.sha256(_config_text(model).encode())
    for name, weight in sorted(model.state_dict(keep_vars=False).items()):
        digest.update(f"{name}{tuple(getattr(weight, 'shape', ()))}".encode())
        offloaded = offloaded_weight(model, name) if getattr(weight, "is_meta", False) else None
        digest.update(_sample(weight if offloaded is None else offloaded))
    return digest.hexdigest()


def _config_text(model: PreTrainedModel) -> str:
    config = {key: value for key, value in model.config.to_dict().items() if key not in _PASSING}
    return json.dumps(config, sort_keys=True, default=str)


def _sample(weight: object) -> bytes:
    """Return a few entries of a weight as bytes; no bytes for a weight without numbers."""
    if not isinstance(weight, torch.Tensor) or weight.is_meta or not weight.numel():
        return b""
    flat = _unpacked(weight.detach()).reshape(-1)
    places = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64).long()
    return flat[places.to(flat.device)].to("cpu", torch.float32).numpy().tobytes()


def _unpacked(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as plain numbers; torchao's quantised tensors cannot be indexed."""
    return weight if type(weight) in {torch.Tensor, *PLAIN_WEIGHTS} else weight.dequantize()
