"""Logs: one JSON line an event on stderr, or readable lines on a terminal. Ids are bound by the bus."""

import logging
import os
import sys

import structlog


def configure(service: str) -> None:
    """Set up structlog for one process; MAVERIQ_LOG_LEVEL (default info) is what is shown."""
    level = logging.getLevelNamesMapping().get(os.environ.get("MAVERIQ_LOG_LEVEL", "info").upper(), logging.INFO)
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)
