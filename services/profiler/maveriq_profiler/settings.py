"""The profiler's environment, read once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from maveriq import agreed_settings as agreed
from maveriq.agreed_settings import EngineName, Method
from maveriq.settings import number, one_of, read
from maveriq_profiler.grid import Limits

# Not 1, 2 and n layers: from 1 and 2 SmolLM2's 30 came out 2.5 % wrong a step and 14 % a prompt, from 2 and 4 1.1 and
# 7 %; simulated, with readings that vary by 1 %, 2 and 8 err half as much as 2 and 4. A depth between adds little.
CPU_LIMITS = Limits(
    layers=(2, 8), batches=(1, 2, 4, 8), prompts=(32, 128, 512), output_tokens=8, budget_s=6.0, cut_bytes=4 * 2**30
)
CUDA_LIMITS = Limits(
    layers=(2, 8), batches=(1, 2, 4, 8, 16, 32), prompts=(128, 512, 2048), output_tokens=48, budget_s=10.0,
    cut_bytes=16 * 2**30,
)  # fmt: skip
# GPU-seconds: six synthetic models at 40 to 70 s each; TensorRT-LLM starts twice for each, at 60 s.
CALIBRATION_BUDGET_S: Mapping[EngineName, float] = {"torch": 300.0, "trtllm": 900.0}
_SECONDS = number(0.01, 1e6, "seconds")


@dataclass(frozen=True, slots=True)
class Settings:
    redis_url: str
    engine: EngineName
    device: str | None
    """cpu or cuda:<n>; None: the first GPU where there is one that can be used, else the CPU."""
    threads: int
    """Of a CPU device: as many as the workers' stages have (MAVERIQ_THREADS_PER_STAGE)."""
    max_pp: int
    calibrates: bool
    """Whether a GPU type that is not calibrated is when the profiler starts."""
    calibration_budget_s: float
    """GPU-seconds of a calibration that names none of its own."""
    estimator: Method
    """The planner's: `maveriq` predicts from fingerprints alone."""
    env: Mapping[str, str]

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Raises BadSetting."""
        on_cpu = env.get("MAVERIQ_DEVICES", "").startswith("cpu")  # the workers' devices are what is to be known
        engine = agreed.engine(env)
        settings = cls(
            redis_url=agreed.redis_url(env),
            engine=engine,
            device=read(env, "MAVERIQ_PROFILE_DEVICE", _device, "cpu" if on_cpu else "") or None,
            threads=agreed.threads_per_stage(env),
            max_pp=agreed.max_pp(env),
            calibrates=read(env, "MAVERIQ_CALIBRATE", one_of(("on", "off")), "on") == "on",
            calibration_budget_s=read(env, "MAVERIQ_CALIBRATION_BUDGET_S", _SECONDS, CALIBRATION_BUDGET_S[engine]),
            estimator=agreed.method(env),
            env=env,
        )
        settings.limits(cuda=False)  # a bad value stops the start, not the first measurement
        return settings

    def limits(self, *, cuda: bool) -> Limits:
        """What a measurement may cost. Raises BadSetting."""
        usual = CUDA_LIMITS if cuda else CPU_LIMITS
        return replace(
            usual,
            layers=read(self.env, "MAVERIQ_PROFILE_LAYERS", _numbers, usual.layers),
            batches=read(self.env, "MAVERIQ_PROFILE_BATCHES", _numbers, usual.batches),
            prompts=read(self.env, "MAVERIQ_PROFILE_PROMPTS", _numbers, usual.prompts),
            budget_s=read(self.env, "MAVERIQ_PROFILE_BUDGET_S", _SECONDS, usual.budget_s),
        )


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda:[0-9]{1,3}", text):
        raise ValueError("give cpu, or cuda: and the number of a GPU, e.g. cuda:0")
    return text


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,5}", part) for part in parts):
        raise ValueError("give whole numbers of 1 or more with commas between, e.g. 2,4,8")
    return tuple(int(part) for part in parts)
