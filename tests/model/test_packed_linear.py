"""Packed linear layers compute what the layers do that they replace."""

import pytest
import torch

from model.packed_linear import PackedLinear, pack

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")


def linear(*, bias: bool, wide: int = 96, out: int = 200) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(wide, out, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (4, 96), (8, 1, 96), (3, 70, 96)])
def test_product_is_the_layers_own(shape: tuple[int, ...], bias: bool) -> None:
    plain = linear(bias=bias)
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(PackedLinear(plain)(given), plain(given), rtol=1e-4, atol=1e-5)


def test_gradient_passes_to_the_input() -> None:
    plain = linear(bias=True)
    given = torch.randn(5, 96, generator=torch.Generator().manual_seed(2))
    gradients = []
    for layer in (plain, PackedLinear(plain)):
        leaf = given.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(leaf).square().sum(), leaf)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


class Tied(torch.nn.Module):
    """Embeddings and a head that share their weight, as in small language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(200, 96)
        self.head = torch.nn.Linear(96, 200, bias=False)
        self.head.weight = self.embed.weight
        self.requires_grad_(False)


def test_packing_keeps_tied_weights_tied() -> None:
    network = Tied()
    pack(network)
    assert isinstance(network.head, PackedLinear)
    assert network.head.weight is network.embed.weight
    assert set(network.state_dict()) == {"embed.weight", "head.weight"}


def test_other_types_are_left_alone() -> None:
    network = Tied().to(torch.bfloat16)
    pack(network)
    assert type(network.head) is torch.nn.Linear


def test_the_default_model_is_packed(small_model: str) -> None:
    from model.frozen_model import FrozenModel

    model = FrozenModel(small_model, length=4, placement="user_turn_end")
    left = [name for name, module in model.network.named_modules() if type(module) is torch.nn.Linear]
    assert left == []
    assert isinstance(model.network.get_output_embeddings(), PackedLinear)
