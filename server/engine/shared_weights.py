"""A transformers model on vLLM's own weights, without a copy of them (decisions/engine.md).

Owns how parameters of vLLM's model, some of them fused, are found again under the names of transformers.
Knows nothing of vLLM's classes, of processes or of what is computed with the model.
"""

from collections.abc import Mapping
from typing import Any

import torch

from model.engine import UnsupportedError

_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""What vLLM stacks, row upon row in this order, into one parameter."""


def assemble(config: Any, parameters: Mapping[str, torch.Tensor]) -> Any:
    """Return a frozen causal language model of transformers whose weights are views of `parameters`.

    Args:
        config: Hugging Face config of the model.
        parameters: by vLLM's names, of a model on one device, unsharded and unquantised.

    Raises:
        UnsupportedError: the weights are quantised, sharded, packed, or of another architecture.
    """
    from transformers import AutoModelForCausalLM

    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedError("the weights are quantised, and no gradient passes through them")
    first = next(iter(parameters.values()), None)
    if first is None:
        raise UnsupportedError("vLLM's model has no parameters")
    try:
        with torch.device("meta"):
            network: Any = AutoModelForCausalLM.from_config(config, dtype=first.dtype)
    except ValueError as error:
        raise UnsupportedError(f"transformers has no causal language model of this kind: {error}") from error
    network.eval().requires_grad_(False)
    _fill_buffers(network, first.device)
    wanted = dict(network.named_parameters())
    stored = set(network.state_dict()) - {
        name for name, _ in network.named_parameters(remove_duplicate=False)
    }
    if stored:
        raise UnsupportedError(f"{min(stored)} is stored, but it is no parameter")
    padded = {id(module.weight) for module in _vocabulary_modules(network)}
    views = {
        name: _view(name, wanted, parameters, may_be_padded=id(parameter) in padded)
        for name, parameter in wanted.items()
    }
    devices = {view.device for view in views.values()}
    if devices != {first.device}:
        raise UnsupportedError(f"the weights lie on several devices: {sorted(map(str, devices))}")
    network.load_state_dict(views, strict=False, assign=True)
    network.tie_weights()
    left = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if left:
        raise UnsupportedError(f"{left[0]} could not be tied to a weight of vLLM")
    return network.requires_grad_(False)


def _fill_buffers(network: Any, device: torch.device) -> None:
    """Compute what is not stored, such as rotary frequencies, while all parameters are still empty.

    The initialiser of transformers writes into weights too: later it would write into vLLM's.
    """
    modules = [module for module in network.modules() if any(True for _ in module.buffers(recurse=False))]
    for module in modules:
        for name, buffer in module.named_buffers(recurse=False):
            # NaN shows below what the initialiser left alone.
            value = float("nan") if buffer.is_floating_point() else 0
            module._buffers[name] = torch.full_like(buffer, value, device=device)
    with torch.no_grad():
        for module in modules:
            network._init_weights(module)
    for name, buffer in network.named_buffers():
        if not buffer.is_floating_point() or bool(buffer.isnan().any()):
            raise UnsupportedError(f"transformers does not say how the buffer {name} is computed")


def _vocabulary_modules(network: Any) -> list[Any]:
    modules = (network.get_input_embeddings(), network.get_output_embeddings())
    return [module for module in modules if module is not None]


def _view(
    name: str,
    wanted: Mapping[str, torch.Tensor],
    parameters: Mapping[str, torch.Tensor],
    *,
    may_be_padded: bool,
) -> torch.Tensor:
    """Return the rows of vLLM's parameters that transformers calls `name`."""
    shape = wanted[name].shape
    source, begin, total = name, 0, shape[0]
    if name not in parameters:
        source, begin, total = _place(name, wanted, parameters)
    parameter = parameters[source]
    if parameter.is_inference():
        raise UnsupportedError(f"{source} was made in inference mode, where no gradient passes")
    if not parameter.is_floating_point():
        raise UnsupportedError(f"{source} is quantised to {parameter.dtype}")
    fits = parameter.ndim == len(shape) and parameter.shape[1:] == shape[1:]
    if not fits or parameter.shape[0] < total or (parameter.shape[0] > total and not may_be_padded):
        raise UnsupportedError(
            f"{source} is packed or sharded: its shape is {tuple(parameter.shape)}, "
            f"and {(total, *shape[1:])} is needed"
        )
    # vLLM's parameters are of classes of its own, whose operations are not torch's.
    return parameter.detach().as_subclass(torch.Tensor)[begin : begin + shape[0]]


def _place(
    name: str, wanted: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]
) -> tuple[str, int, int]:
    """Return the fused parameter that holds `name`, its first row there, and the rows of all parts."""
    owner, _, kind = name.rpartition(".")
    parent, _, part = owner.rpartition(".")
    for fused, parts in _FUSED.items():
        source = f"{parent}.{fused}.{kind}"
        if part in parts and source in parameters:
            rows = [wanted[f"{parent}.{each}.{kind}"].shape[0] for each in parts]
            return source, sum(rows[: parts.index(part)]), sum(rows)
    raise UnsupportedError(f"vLLM's model has no parameter for {name}")
