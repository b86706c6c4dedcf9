"""Gradients on vLLM's weights: parameters as vLLM fuses them, and the worker's part on a plain object."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoConfig

from model.engine import (
    EngineError,
    Label,
    PlacementError,
    PromptTooLongError,
    SteeredPrompt,
    UnsupportedError,
)
from model.transformers_engine import TransformersEngine
from server.engine.extension import StateCatcher
from server.engine.launch import shared_gradient_worker
from server.engine.shared_gradient_worker import SharedGradientWorker, why_not_shared
from server.engine.shared_weights import assemble

LENGTH = 4
CONTEXT = 512
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@pytest.fixture(scope="module")
def shallow(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the small model with its first four layers: the others are made alike."""
    folder = tmp_path_factory.mktemp("shallow")
    for file in Path(small_model).iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    return str(folder)


@pytest.fixture(scope="module")
def reference(shallow: str) -> TransformersEngine:
    """A model of its own whose weights are not packed, as the shared are not: packed ones sum otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.frozen_model.pack", lambda network: None)
        return TransformersEngine(shallow, length=LENGTH, placement="user_turn_end", max_model_len=CONTEXT)


@pytest.fixture(scope="module")
def config(shallow: str) -> Any:
    return AutoConfig.from_pretrained(shallow)


@pytest.fixture(scope="module")
def fused(reference: TransformersEngine) -> dict[str, torch.Tensor]:
    """Parameters of the small model as vLLM has them: stacked, the vocabulary padded, norms trainable."""
    found = dict(reference.model.network.named_parameters())
    names: dict[str, torch.Tensor] = {}
    for name, parameter in found.items():
        owner, _, part = name.removesuffix(".weight").rpartition(".")
        stacked = next((whole for whole, parts in FUSED.items() if part in parts), None)
        if stacked is None:
            padding = 64 if "embed_tokens" in name else 0
            rows = torch.cat([parameter, torch.zeros(padding, *parameter.shape[1:])])
            names[name] = torch.nn.Parameter(rows, requires_grad="norm" in name)
        elif part == FUSED[stacked][0]:
            rows = torch.cat([found[f"{owner}.{each}.weight"] for each in FUSED[stacked]])
            names[f"{owner}.{stacked}.weight"] = torch.nn.Parameter(rows, requires_grad=False)
    return names


@pytest.fixture(scope="module")
def shared(config: Any, fused: dict[str, torch.Tensor]) -> Any:
    return assemble(config, fused)


class Worker(StateCatcher):
    """What of vLLM's worker the gradient worker sees: a model with named parameters."""

    def __init__(self, parameters: dict[str, torch.Tensor]) -> None:
        model = SimpleNamespace(named_parameters=parameters.items)
        self.model_runner = SimpleNamespace(get_model=lambda: model)


class Front:
    """An `AsyncLLM` whose only worker is an object of this process."""

    def __init__(self, worker: Worker, **config: Any) -> None:
        self.worker = worker
        self.model_config = SimpleNamespace(max_model_len=CONTEXT, enable_sleep_mode=False)
        self.vllm_config = SimpleNamespace(**vllm_config(model_config=self.model_config) | config)
        self.called: list[str] = []
        self._news = asyncio.Event()

    async def until(self, method: str, times: int = 1) -> None:
        while self.called.count(method) < times:
            self._news.clear()
            await self._news.wait()

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.called.append(method)
        self._news.set()
        return [getattr(self.worker, method)(*args)]


def vllm_config(**changes: Any) -> dict[str, Any]:
    plain = {
        "quant_config": None,
        "lora_config": None,
        "parallel_config": SimpleNamespace(world_size=1, data_parallel_size=1),
        "model_config": SimpleNamespace(enable_sleep_mode=False),
        "offload_config": SimpleNamespace(
            uva=SimpleNamespace(cpu_offload_gb=0), prefetch=SimpleNamespace(offload_group_size=0)
        ),
    }
    return plain | changes


@pytest.fixture
def front(fused: dict[str, torch.Tensor]) -> Front:
    return Front(Worker(fused))


@pytest_asyncio.fixture
async def gradient_worker(shallow: str, front: Front) -> AsyncIterator[SharedGradientWorker]:
    gradient_worker = SharedGradientWorker(front, shallow, length=LENGTH, placement="user_turn_end")
    await gradient_worker.start()
    yield gradient_worker
    await gradient_worker.close()


def prompts_of(engine: TransformersEngine) -> list[SteeredPrompt]:
    torch.manual_seed(0)
    texts = ("Name a colour.", "Which of the four seasons is the coldest one?")
    tokens = [engine.render([{"role": "user", "content": text}]) for text in texts]
    neutral = engine.neutral_latent()
    return [SteeredPrompt(each, neutral + 0.01 * torch.randn_like(neutral)) for each in tokens]


LABELS = [Label.of((1234, 56)), Label.of((789, 10, 11))]
COLOURS = ("red", "blue")


def test_every_weight_lies_in_vllms_storage(shared: Any, fused: dict[str, torch.Tensor]) -> None:
    storages = {parameter.untyped_storage().data_ptr() for parameter in fused.values()}
    for name, parameter in shared.named_parameters():
        assert parameter.untyped_storage().data_ptr() in storages, name
    attention, stacked = shared.model.layers[3].self_attn, fused["model.layers.3.self_attn.qkv_proj.weight"]
    inside = attention.k_proj.weight.data_ptr() - stacked.data_ptr()
    assert inside == attention.q_proj.weight.numel() * stacked.element_size()
    assert shared.lm_head.weight.data_ptr() == fused["model.embed_tokens.weight"].data_ptr()


def test_gradient_worker_is_frozen_and_vllms_parameters_stay_as_they_were(
    shared: Any, fused: dict[str, torch.Tensor]
) -> None:
    assert not any(parameter.requires_grad for parameter in shared.parameters())
    assert fused["model.norm.weight"].requires_grad
    assert not shared.training


def test_buffers_are_those_of_a_loaded_model(shared: Any, reference: TransformersEngine) -> None:
    loaded = dict(reference.model.network.named_buffers())
    assembled = dict(shared.named_buffers())
    assert assembled.keys() == loaded.keys()
    for name, buffer in assembled.items():
        assert torch.equal(buffer, loaded[name]), name


def test_assembling_leaves_the_weights_untouched(
    shared: Any, fused: dict[str, torch.Tensor], reference: TransformersEngine
) -> None:
    loaded = dict(reference.model.network.named_parameters())
    for name, parameter in shared.named_parameters():
        assert torch.equal(parameter, loaded[name]), name


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("model.layers.2.self_attn.qkv_proj.weight", None, "no parameter for"),
        ("model.layers.2.mlp.down_proj.weight", None, "no parameter for"),
        ("model.layers.2.mlp.gate_up_proj.weight", torch.empty(0), "packed or sharded"),
        ("model.layers.2.mlp.gate_up_proj.weight", torch.zeros(1536, 576), "packed or sharded"),
        ("model.layers.2.mlp.down_proj.weight", torch.zeros(640, 1536), "packed or sharded"),
        ("model.embed_tokens.weight", torch.zeros(49000, 576), "packed or sharded"),
        ("model.norm.weight", torch.zeros(576, dtype=torch.int8), "quantised"),
        ("model.norm.weight", torch.zeros(576, device="meta"), "several devices"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    config: Any, fused: dict[str, torch.Tensor], name: str, value: torch.Tensor | None, reason: str
) -> None:
    changed = {key: parameter for key, parameter in fused.items() if key != name}
    if value is not None:
        changed[name] = value
    with pytest.raises(UnsupportedError, match=reason):
        assemble(config, changed)


def test_weights_made_in_inference_mode_are_refused(config: Any, fused: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        norm = torch.ones(576)
    with pytest.raises(UnsupportedError, match="inference mode"):
        assemble(config, fused | {"model.norm.weight": norm})


def test_quantised_model_is_refused(shallow: str, fused: dict[str, torch.Tensor]) -> None:
    config = AutoConfig.from_pretrained(shallow)
    config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(UnsupportedError, match="quantised"):
        assemble(config, fused)


@pytest.mark.parametrize(
    "change",
    [
        {"quant_config": object()},
        {"lora_config": object()},
        {"parallel_config": SimpleNamespace(world_size=2, data_parallel_size=1)},
        {"parallel_config": SimpleNamespace(world_size=1, data_parallel_size=2)},
        {"model_config": SimpleNamespace(enable_sleep_mode=True)},
        {
            "offload_config": SimpleNamespace(
                uva=SimpleNamespace(cpu_offload_gb=1), prefetch=SimpleNamespace(offload_group_size=0)
            )
        },
    ],
)
def test_engines_whose_weights_move_are_left_to_the_other_gradient_worker(change: dict[str, Any]) -> None:
    assert why_not_shared(SimpleNamespace(**vllm_config())) is None
    assert why_not_shared(SimpleNamespace(**vllm_config(**change)))


async def test_results_are_those_of_the_reference(
    gradient_worker: SharedGradientWorker, reference: TransformersEngine
) -> None:
    prompts = prompts_of(reference)
    plain = [prompt.token_ids for prompt in prompts]
    assert torch.equal(await gradient_worker.raw_states(plain), await reference.raw_states(plain))
    said = tuple(reference.answer_tokens(name) for name in COLOURS)
    held = [Label.of(said[0], COLOURS), Label(said, (0.3, 0.7), COLOURS)]
    for labels in (LABELS, held):
        values = await gradient_worker.log_likelihood(prompts, labels)
        assert torch.equal(values, await reference.log_likelihood(prompts, labels))
        found = await gradient_worker.latent_gradient(prompts, labels, [1.0, -0.5])
        wanted = await reference.latent_gradient(prompts, labels, [1.0, -0.5])
        torch.testing.assert_close(found.log_likelihood, wanted.log_likelihood)
        torch.testing.assert_close(found.gradient, wanted.gradient)
        assert found.gradient.any()


async def test_jobs_run_off_the_calling_thread(
    gradient_worker: SharedGradientWorker,
    front: Front,
    reference: TransformersEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released, threads = threading.Event(), []
    model = front.worker.gradient_jobs._model
    log_likelihood = model.log_likelihood

    def held(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        assert released.wait(10)
        return log_likelihood(*arguments)

    monkeypatch.setattr(model, "log_likelihood", held)
    asking = asyncio.create_task(gradient_worker.log_likelihood(prompts_of(reference), LABELS))
    await front.until("poll_gradient_job", times=3)  # the caller's loop goes on meanwhile
    assert not asking.done()
    released.set()
    assert (await asking).shape == (2,)
    assert threads[0] is not threading.current_thread()


async def test_errors_of_a_job_come_back_as_themselves(
    gradient_worker: SharedGradientWorker,
    front: Front,
    reference: TransformersEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (prompt, _) = prompts_of(reference)
    with pytest.raises(PromptTooLongError):
        await gradient_worker.log_likelihood([prompt], [Label.of((1,) * CONTEXT)])
    with pytest.raises(PlacementError):
        await gradient_worker.log_likelihood([SteeredPrompt((5, 6, 7), prompt.latent)], [Label.of((1,))])

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(front.worker.gradient_jobs._model, "log_likelihood", broken)
        with pytest.raises(
            EngineError, match="RuntimeError in the gradient worker in vLLM's worker: out of memory"
        ):
            await gradient_worker.log_likelihood([prompt], [Label.of((1,))])
    assert (await gradient_worker.log_likelihood([prompt], [Label.of((1,))])).shape == (1,)


async def test_job_of_a_cancelled_caller_is_forgotten(
    gradient_worker: SharedGradientWorker,
    front: Front,
    reference: TransformersEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()
    monkeypatch.setattr(front.worker.gradient_jobs._model, "log_likelihood", lambda *_: released.wait(10))
    asking = asyncio.create_task(gradient_worker.log_likelihood(prompts_of(reference), LABELS))
    await front.until("poll_gradient_job")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await front.until("drop_gradient_job")
    released.set()
    assert not front.worker.gradient_jobs._jobs


async def test_engine_with_packed_weights_gets_no_shared_gradient_worker(
    shallow: str, fused: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    settings: Any = SimpleNamespace(latent_length=LENGTH, placement="user_turn_end")
    packed = fused | {"model.layers.0.mlp.down_proj.weight": torch.empty(0)}
    assert await shared_gradient_worker(Front(Worker(packed)), settings, shallow) is None
    assert "packed or sharded" in caplog.text
    quantised = Front(Worker(fused), quant_config=object())
    assert await shared_gradient_worker(quantised, settings, shallow) is None
    assert not quantised.called
    gradient_worker = await shared_gradient_worker(Front(Worker(fused)), settings, shallow)
    assert gradient_worker is not None
    await gradient_worker.close()
