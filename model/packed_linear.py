"""Linear layers with weights laid out for oneDNN, for CPUs.

Owns the second copy of the weights and who multiplies with which. Knows nothing of what the layers are for.
`docs/adr/0011-weights-packed-for-the-cpu.md` has the measurements.
"""

from typing import Any

import torch

_ROWS = 8
"""What the layout is chosen for. With 8 or more it serves any number of rows; with 1, no other."""


class PackedLinear(torch.nn.Linear):
    """`linear`, with a copy of its weight packed once instead of at every product.

    Gradients pass to the input only, as they do through a frozen model.

    Args:
        linear: in float32, on the CPU; its parameters are shared, so tied weights stay tied.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input · weightᵀ + bias, (..., out_features)."""
        if torch.is_grad_enabled() and input.requires_grad:
            product: torch.Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
            return product
        return self.product(input)

    def product(self, input: torch.Tensor) -> torch.Tensor:
        """Return the same, for autograd to look away from."""
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.packed, self.bias, "none", [], ""
        )
        return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, input: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        context.layer = layer
        return layer.product(input)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ context.layer.weight, None


def pack(network: torch.nn.Module) -> None:
    """Replace every linear layer of a frozen `network` by a packed one, where oneDNN is there.

    Does nothing unless all of the network is float32 on the CPU.
    """
    kinds = {(parameter.device.type, parameter.dtype) for parameter in network.parameters()}
    if kinds != {("cpu", torch.float32)} or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(module, name, PackedLinear(child))
