"""Intent-based LLM serving: say what a model must do, and stream its tokens."""

from maveriq.contracts import Intent, Objective, Sampling, Slo, Workload

__all__ = ["Intent", "Objective", "Sampling", "Slo", "Workload"]
