"""Variables that several services read, so that all read them alike."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Literal

from maveriq.settings import one_of, read, url, whole

EngineName = Literal["torch", "trtllm"]
ENGINES: tuple[EngineName, ...] = ("torch", "trtllm")
_AMQP_URL = url(("amqp", "amqps"), "expected amqp://user:password@host/ or amqps://...")
_REDIS_URL = url(("redis", "rediss", "unix"), "give a Redis URL, e.g. redis://localhost:6379/0")


class Method(StrEnum):
    """Where predictions come from."""

    LAW = "law"
    """GPU types' calibrations, else the model's own fingerprint."""
    MAVERIQ = "maveriq"
    """The published method, from fingerprints alone."""
    AICONFIGURATOR = "aiconfigurator"
    """As `law`; the vendor's tables for GPU types that were never measured."""


def amqp_url(env: Mapping[str, str]) -> str:
    """Where the broker is. Raises BadSetting, as all here."""
    return read(env, "MAVERIQ_AMQP_URL", _AMQP_URL)


def redis_url(env: Mapping[str, str]) -> str:
    """Of ingress, profiler and allocator."""
    return read(env, "MAVERIQ_REDIS_URL", _REDIS_URL)


def engine(env: Mapping[str, str]) -> EngineName:
    """Of workers, and of the profilers that measure for them."""
    return read(env, "MAVERIQ_ENGINE", one_of(ENGINES), "torch")


def threads_per_stage(env: Mapping[str, str]) -> int:
    """CPU threads of a worker's stages; as many are measured with."""
    return read(env, "MAVERIQ_THREADS_PER_STAGE", whole(1, 1024), 1)


def max_pp(env: Mapping[str, str]) -> int:
    """Most pipeline stages that are measured for and planned: how far a model may be cut to fit fragments."""
    return read(env, "MAVERIQ_MAX_PP", whole(1, 128), 8)


def cache_dir(env: Mapping[str, str]) -> Path:
    """Where workers and embedded servers keep what is worth keeping."""
    return read(env, "MAVERIQ_CACHE_DIR", Path, Path("~/.cache/maveriq")).expanduser()


def method(env: Mapping[str, str]) -> Method:
    """Of the planner; the profiler measures what it needs."""
    return read(env, "MAVERIQ_ESTIMATOR", one_of(Method), Method.LAW)
