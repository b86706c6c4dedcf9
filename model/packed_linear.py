"""Linear layers with weights laid out for oneDNN, for CPUs.

Owns the copies of the weights, who multiplies with which, and which CPUs compute quicker in bfloat16. Knows
nothing of what the layers are for. `docs/decisions/engine.md` has the measurements.
"""

from typing import Any

import torch

_ROWS = 8
"""What the layout is chosen for. With 8 or more it serves any number of rows; with 1, no other."""


class PackedLinear(torch.nn.Linear):
    """`linear`, with a copy of its weight packed once instead of at every product.

    Gradients pass to the input only, as they do through a frozen model.

    Args:
        linear: in float32 or bfloat16, on the CPU; its parameters are shared, so tied weights stay tied.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = _packed(linear.weight.detach())
        self._transposed: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input · weightᵀ + bias, (..., out_features)."""
        if torch.is_grad_enabled() and input.requires_grad:
            product: torch.Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
            return product
        return self.product(input)

    def product(self, input: torch.Tensor) -> torch.Tensor:
        """Return the same, for autograd to look away from."""
        return _product(input, self.packed, self.bias)

    def gradient(self, output: torch.Tensor) -> torch.Tensor:
        """Return the gradient by the input, (..., in_features), from that by the output."""
        if output.dtype == torch.float32:
            return output @ self.weight
        # Products that are not packed may be hundreds of times slower here, so a third copy is made when the
        # first gradient asks for it.
        if self._transposed is None:
            self._transposed = _packed(self.weight.detach().t().contiguous())
        return _product(output, self._transposed, None)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, input: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        context.layer = layer
        return layer.product(input)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.layer.gradient(gradients[0]), None


def _packed(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return packed


def _product(input: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
    return product


def cpu_dtype() -> torch.dtype:
    """Return what this CPU is quickest in: bfloat16 if it multiplies tiles of it (AMX), else float32."""
    return torch.bfloat16 if _multiplies_bfloat16() else torch.float32


def _multiplies_bfloat16() -> bool:
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(has_onednn and torch.cpu._is_amx_tile_supported())


def pack(network: torch.nn.Module) -> None:
    """Replace every linear layer of a frozen `network` by a packed one, where oneDNN is there.

    Does nothing unless all of the network is on the CPU, in float32, or in bfloat16 where the CPU multiplies
    tiles of it.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    kinds = {(parameter.device.type, parameter.dtype) for parameter in network.parameters()}
    if kinds not in ({("cpu", torch.float32)}, {("cpu", cpu_dtype())}):
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(module, name, PackedLinear(child))
