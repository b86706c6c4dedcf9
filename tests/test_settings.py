"""`.env.example` says what the settings say."""

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from config.settings import Settings, unknown_variables

EXAMPLE = Path(__file__).parents[1] / ".env.example"
LINE = re.compile(r"^#?(LATENTEVOLVE_[A-Z_]+)=(.*)$", re.MULTILINE)


def test_example_lists_every_setting_with_its_default() -> None:
    listed = dict(LINE.findall(EXAMPLE.read_text()))
    expected = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, bool):
            default = str(default).lower()
        expected[f"LATENTEVOLVE_{name.upper()}"] = "" if default is None else str(default)
    assert listed == expected


def test_example_says_what_each_setting_means() -> None:
    text = EXAMPLE.read_text()
    for name, field in Settings.model_fields.items():
        assert f"# {field.description}\n" in text, name


def test_every_line_of_the_example_can_be_set(tmp_path: Path) -> None:
    env = tmp_path / ".env"
    env.write_text(re.sub(r"^#(LATENTEVOLVE_)", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    settings = Settings(_env_file=env)
    assert settings.night_cron == "0 3 * * *"
    assert settings.api_key is None, "an empty value means: not set"


def test_none_overrules_what_the_file_says(tmp_path: Path) -> None:
    env = tmp_path / ".env"
    state = "postgresql+psycopg://user:password@postgres/state"
    env.write_text(
        "LATENTEVOLVE_MEMORY_URL=http://qdrant:6333\nLATENTEVOLVE_BROKER_URL=redis://redis\n"
        f"LATENTEVOLVE_STATE_URL={state}\n"
    )
    assert Settings(_env_file=env).state_url == state
    assert Settings(_env_file=env).memory_url == "http://qdrant:6333"
    settings = Settings(_env_file=env, memory_url="none", broker_url="none", state_url="none")
    assert (settings.memory_url, settings.broker_url, settings.state_url) == (None, None, None)


def test_collector_is_named_by_the_standard_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert Settings(_env_file=None).otlp_endpoint is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert Settings(_env_file=None).otlp_endpoint == "http://collector:4318"
    monkeypatch.setenv("LATENTEVOLVE_OTLP_ENDPOINT", "none")
    assert Settings(_env_file=None).otlp_endpoint is None, "ours goes before"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
        ("box.local", "http://box.local:8000"),
    ],
)
def test_url_is_how_this_machine_reaches_the_gateway(host: str, url: str) -> None:
    assert Settings(_env_file=None, host=host).url == url


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0),
        ("population", 3),
        ("recall_floor", 1.5),
        ("night_holdout", 1.0),
        ("high_search", "x"),
        ("verifier_url", "ftp://host/score"),
        ("verifier_url", "http://"),
        ("verifier_url", "http://host:99999/"),
        ("verifier_url", "http://host:0/"),
        ("verifier_url", "http://256.1.1.1/"),  # httpx cannot read this and what follows
        ("verifier_url", "http://host/\x01"),
        ("verifier_url", "http://\u2603.net/"),
        ("verifier_url", "http://xn--a/"),
        ("state_url", "mysql://host/state"),
        ("state_url", "state.db"),
        ("otlp_endpoint", "collector:4317"),
        ("night_cron", "at 3"),
        ("night_cron", "99 * * * *"),
    ],
)
def test_value_out_of_range_is_refused_naming_the_setting(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings.model_validate({name: value})


def test_reason_to_refuse_a_verifier_says_nothing_of_its_url() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"verifier_url": "http://user:sec/ret@host/"})
    assert refused.value.errors()[0]["msg"] == "Value error, not an http:// or https:// URL"


def test_verifier_that_is_named_needs_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTEVOLVE_REWARDS", "confidence=0.5, verifier = 0.5")
    with pytest.raises(ValidationError, match="needs LATENTEVOLVE_VERIFIER_URL"):
        Settings(_env_file=None)
    monkeypatch.setenv("LATENTEVOLVE_VERIFIER_URL", "http://127.0.0.1:9/score")
    assert Settings(_env_file=None).verifier_url == "http://127.0.0.1:9/score"


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without settings."""
    for name in [name for name in os.environ if name.startswith("LATENTEVOLVE_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_variable_that_is_no_setting_is_told_with_the_one_that_may_be_meant(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clean.setenv("LATENTEVOLVE_DATADIR", "elsewhere")
    clean.setenv("LATENTEVOLVE_REFINER", "vote")
    (tmp_path / ".env").write_text("LATENTEVOLVE_NIGHT_STEP=7\nLATENTEVOLVE_NIGHT_SEED=7\nNIGHT_STEPZ=7\n")
    told = unknown_variables(tmp_path / ".env")
    assert [sentence.split()[0] for sentence in told] == [
        "LATENTEVOLVE_DATADIR",
        "LATENTEVOLVE_NIGHT_STEP",
        "LATENTEVOLVE_REFINER",
    ]
    assert "LATENTEVOLVE_DATA_DIR?" in told[0]
    assert "LATENTEVOLVE_NIGHT_STEPS?" in told[1]
    assert ".env.example" in told[2]


def test_nothing_is_told_of_settings_of_empty_values_or_of_others(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env = tmp_path / ".env"
    env.write_text(re.sub(r"^#(LATENTEVOLVE_)", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    clean.setenv("LATENTEVOLVE_TAG", "cuda")  # docker-compose.yml's
    clean.setenv("LATENTEVOLVE_NO_SETTING", "")
    clean.setenv("latentevolve_port", "8001")
    clean.setenv("VLLM_LOGGING_LEVEL", "INFO")
    assert unknown_variables(env) == []
    assert unknown_variables(None) == []
