"""What vLLM is started with."""

import os
import shlex
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from config.settings import Settings
from model.prefixes import kv_values
from server.api.cors import cors_options
from server.engine.launch import (
    MAX_MODEL_LEN,
    engine_arguments,
    intel_openmp,
    prepare_environment,
    runs_on_cpu,
    starts_eager,
)

SHAPE = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
"""Of Qwen3-0.6B, whose longest prompt needs more than the least."""


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> bool:
    """Also imports vLLM, which writes to the environment, before a test changes that."""
    return runs_on_cpu()


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.compiler.set_stance("default")


def arguments(context: int | None = 2048, on_cpu: bool = True, **settings: Any) -> list[str]:
    return engine_arguments(
        Settings(_env_file=None, **settings),
        "/models/small",
        SimpleNamespace(max_position_embeddings=context, **SHAPE),
        on_cpu=on_cpu,
        has_bfloat16=False,
    )


def value(options: list[str], name: str) -> str:
    """Return what the parser would take: the last value of an option."""
    return options[len(options) - options[::-1].index(name)]


def test_context_is_the_models_but_bounded() -> None:
    assert value(arguments(context=2048), "--max-model-len") == "2048"
    assert value(arguments(context=131_072), "--max-model-len") == str(MAX_MODEL_LEN)
    assert value(arguments(context=131_072, max_model_len=16_384), "--max-model-len") == "16384"
    assert "--max-model-len" not in arguments(context=None)


def test_fraction_of_a_gibibyte_becomes_bytes() -> None:
    assert value(arguments(kv_cache_gib=0.25), "--kv-cache-memory-bytes") == str(2**28)


def test_the_cache_holds_one_longest_prompt_and_is_never_tiny() -> None:
    assert int(value(arguments(context=40_960), "--kv-cache-memory-bytes")) >= 8192 * 229_376
    assert int(value(arguments(context=512), "--kv-cache-memory-bytes")) == 2**29


@pytest.mark.parametrize(("kind", "tells"), [("gemma4", False), ("mamba", False), ("deepseek_v3", True)])
def test_a_config_that_does_not_tell_its_shape_gets_the_least(kind: str, tells: bool) -> None:
    assert (kv_values(AutoConfig.for_model(kind).get_text_config()) > 0) == tells


def test_cpu_options_stay_away_from_gpus() -> None:
    options = arguments(on_cpu=False)
    assert not {"--kv-cache-memory-bytes", "--block-size", "--dtype"} & set(options)


def test_operators_options_win_over_ours() -> None:
    options = arguments(vllm_args="--dtype bfloat16 --tool-call-parser 'pythonic'")
    assert value(options, "--dtype") == "bfloat16"
    assert value(options, "--tool-call-parser") == "pythonic"


def test_operators_options_cannot_take_the_hooks_away() -> None:
    options = arguments(vllm_args="--worker-extension-cls other.Class --no-enable-prefix-caching")
    assert value(options, "--worker-extension-cls") == "server.engine.extension.StateCatcher"
    assert options.index("--enable-prefix-caching") > options.index("--no-enable-prefix-caching")
    assert "--enable-prompt-embeds" in options


def test_api_key_is_left_to_the_gateway() -> None:
    assert "--api-key" not in arguments(api_key="secret")


def test_clients_see_the_served_name() -> None:
    assert value(arguments(model="some/model"), "--served-model-name") == "some/model"
    named = arguments(model="some/model", served_model_name="mine")
    assert value(named, "--served-model-name") == "mine"


def test_vllm_sends_its_spans_where_ours_go(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--otlp-traces-endpoint" not in arguments()
    url = "http://127.0.0.1:4318"
    assert value(arguments(otlp_endpoint=f"{url}/"), "--otlp-traces-endpoint") == f"{url}/v1/traces"
    monkeypatch.setattr(os, "environ", {})
    prepare_environment(Settings(_env_file=None), "org/model")
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" not in os.environ
    prepare_environment(Settings(_env_file=None, otlp_endpoint=url), "org/model")
    assert os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert os.environ["OTEL_SERVICE_NAME"] == "latentevolve"


def test_operators_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"})
    prepare_environment(Settings(_env_file=None), "org/model")
    assert os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "1"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert "HF_HUB_OFFLINE" not in os.environ


def test_intels_openmp_is_loaded_first_but_never_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = intel_openmp()
    if runtime is None:
        pytest.skip("no intel-openmp: vLLM is not the CPU build")
    for before, after in (
        ("", str(runtime)),
        ("/lib/libtcmalloc.so", f"{runtime}:/lib/libtcmalloc.so"),
        ("/lib/libgomp.so.1", "/lib/libgomp.so.1"),
    ):
        monkeypatch.setattr(os, "environ", {"LD_PRELOAD": before})
        prepare_environment(Settings(_env_file=None), "org/model")
        assert os.environ["LD_PRELOAD"] == after


def test_vllm_learns_the_cores_without_lscpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list

    asked = get_allowed_cpu_list() if shutil.which("lscpu") else None
    monkeypatch.setenv("PATH", str(tmp_path))
    prepare_environment(Settings(_env_file=None), "org/model")
    found = get_allowed_cpu_list()
    assert {cpu.id for cpu in found} == os.sched_getaffinity(0)
    if asked is not None:
        assert [(cpu.id, cpu.numa_node) for cpu in found] == [(cpu.id, cpu.numa_node) for cpu in asked]
        assert len({cpu.physical_core for cpu in found}) == len({cpu.physical_core for cpu in asked})
    (tmp_path / "lscpu").touch(0o755)
    assert shutil.which("lscpu") == str(tmp_path / "lscpu"), "the machine's own comes first"


def read_by_vllm(options: list[str]) -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(options)


CONFIGS = [
    "enforce-eager: true",
    "enforce-eager: false",
    "enforce_eager: true\nseed: 3",
    "allowed-origins: '[\"https://a\"]'\nallow-credentials: true",
    "allowed_origins: '[\"*\"]'\nallow-credentials: false\nmiddleware: [a.b, c.d]",
    "compilation-config: {mode: 0}",
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_file_of_options_is_read_as_vllm_reads_it(config: str, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(config)
    for others in ("", "--no-enforce-eager", "--enforce-eager", "--allowed-origins '[\"https://b\"]'"):
        vllm_args = f"--seed 4 --config {file} {others}"
        browsers = read_by_vllm(shlex.split(vllm_args))
        cors = cors_options(vllm_args)
        assert (cors["allow_origins"] if cors else []) == browsers.allowed_origins
        assert not cors or cors["allow_credentials"] == browsers.allow_credentials
        for eager in (True, False):
            settings = Settings(_env_file=None, vllm_args=vllm_args, enforce_eager=eager)
            engine = read_by_vllm(arguments(vllm_args=vllm_args, enforce_eager=eager))
            assert starts_eager(settings) == engine.enforce_eager, (others, eager)
            assert engine.allowed_origins == [], "vLLM's own layer stays out of the way"


@pytest.mark.parametrize("config", [None, "", "- a", "a: [", "\x00"])
def test_a_file_of_options_that_cannot_be_read_is_refused_by_name(config: str | None, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    if config is not None:
        file.write_text(config)
    for vllm_args in (f"--config {file}", "--config", f"--config {file} --config {file}"):
        assert cors_options(vllm_args) is None
        with pytest.raises(ValueError, match="LATENTEVOLVE_VLLM_ARGS: `--config"):
            starts_eager(Settings(_env_file=None, vllm_args=vllm_args))


@pytest.fixture
def nothing_to_compile_with(on_cpu: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    if not on_cpu:
        pytest.skip("vLLM is not the CPU build")
    monkeypatch.setattr(os, "environ", {"PATH": str(tmp_path)})
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))


def prepared(**settings: Any) -> str | None:
    """Return what the environment then says of compiling."""
    prepare_environment(Settings(_env_file=None, **settings), "org/model")
    return os.environ.get("TORCH_COMPILE_DISABLE")


@pytest.mark.usefixtures("nothing_to_compile_with")
class TestCompiling:
    @pytest.mark.parametrize(
        "settings",
        [{}, {"enforce_eager": False, "vllm_args": "--enforce-eager"}, {"vllm_args": "--dtype float32"}],
    )
    def test_eager_engine_on_a_cpu_compiles_nothing(self, settings: dict[str, Any]) -> None:
        assert prepared(**settings) == "1"
        assert torch.compile(torch.sin)(torch.zeros(1)).item() == 0, "not in this process either"

    @pytest.mark.parametrize(
        "settings", [{"enforce_eager": False}, {"vllm_args": "--no-enforce-eager --dtype float32"}]
    )
    def test_compiling_without_a_compiler_is_refused_at_the_start(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"needs a C\+\+ compiler and Python's headers: .*ENFORCE_EAGER"):
            prepared(**settings)

    def test_model_is_compiled_where_that_can_be_done(self, tmp_path: Path) -> None:
        compiler = tmp_path / "g++"
        compiler.write_text("#!/bin/sh\n")
        compiler.chmod(0o755)
        (tmp_path / "Python.h").touch()
        assert prepared(enforce_eager=False) is None

    def test_operators_word_on_compiling_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_COMPILE_DISABLE", "0")
        assert prepared() == "0"
        monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
        assert prepared(enforce_eager=False) == "1"
