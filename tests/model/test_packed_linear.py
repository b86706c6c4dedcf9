"""Packed linear layers compute what the layers do that they replace."""

import pytest
import torch

from model.packed_linear import PackedLinear, cpu_dtype, pack

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


@pytest.mark.skipif(cpu_dtype() != torch.bfloat16, reason="this CPU does not multiply tiles of bfloat16")
def test_bfloat16_where_the_cpu_has_tiles_rounds_but_agrees() -> None:
    exact = linear(bias=True)
    given = torch.randn(5, 96, generator=torch.Generator().manual_seed(2))
    layer = PackedLinear(linear(bias=True).to(torch.bfloat16))
    results = []
    for of, leaf in ((exact, given.clone()), (layer, given.to(torch.bfloat16))):
        leaf.requires_grad_()
        product = of(leaf)
        (gradient,) = torch.autograd.grad(product.float().square().sum(), leaf)
        results.append((product.detach().float(), gradient.float()))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert (ours - theirs).norm() <= 0.01 * theirs.norm()


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
    network = Tied().to(torch.float16)
    pack(network)
    assert type(network.head) is torch.nn.Linear


@pytest.mark.parametrize("tiles", [False, True])
def test_bfloat16_is_packed_only_where_the_cpu_has_tiles(
    tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiles and cpu_dtype() != torch.bfloat16:
        pytest.skip("this CPU does not multiply tiles of bfloat16")
    monkeypatch.setattr("model.packed_linear._multiplies_bfloat16", lambda: tiles)
    assert cpu_dtype() == (torch.bfloat16 if tiles else torch.float32)
    network = Tied().to(torch.bfloat16)
    pack(network)
    assert (type(network.head) is PackedLinear) == tiles


def test_the_default_model_is_packed(small_model: str) -> None:
    from model.frozen_model import FrozenModel

    model = FrozenModel(small_model, length=4, placement="user_turn_end")
    left = [name for name, module in model.network.named_modules() if type(module) is torch.nn.Linear]
    assert left == []
    assert isinstance(model.network.get_output_embeddings(), PackedLinear)
