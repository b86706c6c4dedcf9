"""What is trained in place of latents: weights' updates, prefixes of keys and values, rows before the prompt.

Owns the parameters of each and how they take part in a forward pass. Bench only: the server never changes a
weight. Knows nothing of labels or of training.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.prefill import Row
from model.prefixes import Prefix, Prefixes


class Adapter(Protocol):
    """What is trained in place of a latent."""

    learning_rate: float
    before: int
    """Positions that it puts before every prompt."""
    kept: Prefixes | None
    """Knows the prefixes of `row`."""

    def row(self, prompt: Tensor) -> Row:
        """Return a prompt, (T, d) embeddings, with what stands before it."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return what is trained, by name."""
        ...

    def attached(self) -> Any:
        """Return a context in which the network answers with it."""
        ...


class Lora:
    """A low-rank update of every linear layer but the head (arXiv 2106.09685), twice as strong as its rank.

    It starts as no update. One for all clusters.
    """

    learning_rate = 1e-3
    before = 0
    kept: Prefixes | None = None

    def __init__(self, network: Any, rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._layers: dict[str, nn.Linear] = {
            name: layer for name, layer in network.base_model.named_modules() if isinstance(layer, nn.Linear)
        }
        self._down, self._up = {}, {}
        for name, layer in self._layers.items():
            down = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
            self._down[name] = down.to(network.device).requires_grad_()
            self._up[name] = torch.zeros(layer.out_features, rank, device=network.device, requires_grad=True)

    def row(self, prompt: Tensor) -> Row:
        """Return a prompt as it is."""
        return Row((), prompt)

    def tensors(self) -> dict[str, Tensor]:
        """Return both factors of each layer: (rank, in) and (out, rank), float32."""
        return {
            f"{name}.{part}": factors[name]
            for part, factors in (("down", self._down), ("up", self._up))
            for name in factors
        }

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Add the update to what each layer returns."""

        def adds(name: str) -> Callable[[Any, Any, Tensor], Tensor]:
            def add(_layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
                (given,) = inputs
                # In float32: CPUs are slow at products in bfloat16 that are not laid out for them.
                update: Tensor = given.float() @ self._down[name].T @ self._up[name].T
                return output + (2 * update).to(output.dtype)

            return add

        hooks = [layer.register_forward_hook(adds(name)) for name, layer in self._layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class KvPrefix(Prefixes):
    """Keys and values of L positions before every prompt, in every layer (arXiv 2101.00190).

    It starts as those of the neutral latent. One for all clusters.
    """

    learning_rate = 5e-3

    def __init__(self, network: Any, neutral: Tensor) -> None:
        """`neutral` is the (L, d) latent that it starts from."""
        super().__init__(0)
        with torch.no_grad():
            given = neutral[None].to(network.device, network.dtype)
            layers = network.base_model(inputs_embeds=given, use_cache=True).past_key_values.layers
        self._dtype = network.dtype
        self._layers = [
            [part.detach().float().requires_grad_() for part in (layer.keys, layer.values)]
            for layer in layers  # (1, H, L, w) each
        ]
        self.before = len(neutral)
        self.kept: Prefixes | None = self

    def row(self, prompt: Tensor) -> Row:
        """Return a prompt behind the prefix."""
        return Row((0,) * self.before, prompt)

    def tensors(self) -> dict[str, Tensor]:
        """Return keys and values of each layer, (1, H, L, w) float32."""
        return {
            f"{number}.{name}": part
            for number, layer in enumerate(self._layers)
            for name, part in zip(("keys", "values"), layer, strict=True)
        }

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Change nothing: a pass is handed the prefix as its cache."""
        yield

    def cache(self, prefixes: Sequence[Prefix], compute: Callable[[Sequence[Prefix]], Any]) -> Any:
        """Return the prefix as a cache of one row; nothing is computed for it."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for number, (keys, values) in enumerate(self._layers):
            cache.update(keys.to(self._dtype), values.to(self._dtype), number)
        return cache


class SoftPrompt:
    """Rows of the input-embedding space before every prompt, as TTSV trains them (arXiv 2512.04748).

    They start as copies of the neutral latent's first row. The learning rate is the published one.
    """

    learning_rate = 1e-3
    kept: Prefixes | None = None

    def __init__(self, neutral: Tensor, count: int = 20) -> None:
        """`neutral` is an (L, d) latent; `count` rows, as published."""
        self.before = count
        self._rows = neutral[:1].repeat(count, 1).float().requires_grad_()  # (count, d)

    def row(self, prompt: Tensor) -> Row:
        """Return a prompt behind the rows."""
        return Row((), torch.cat([self._rows, prompt]))

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows, (count, d) float32."""
        return {"rows": self._rows}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Change nothing: the rows stand before the prompt."""
        yield
