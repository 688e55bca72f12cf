"""Logs: one JSON line an event on stderr, or readable lines on a terminal. Ids are bound by the bus."""

import logging
import os
import sys
from types import TracebackType

import structlog

from maveriq.settings import one_of, read

LEVELS = ("debug", "info", "warning", "error", "critical")
_TELL_EACH_RECONNECT = ("aio_pika", "aiormq")  # and the bus tells of it once


def configure(service: str) -> None:
    """Set up logging for one process: our events, and what libraries say.

    MAVERIQ_LOG_LEVEL (default info) is what is shown. Raises BadSetting.
    """
    level = logging.getLevelNamesMapping()[read(os.environ, "MAVERIQ_LOG_LEVEL", _level, "INFO")]
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*processors, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)
    _render_libraries(processors, render)


def _render_libraries(processors: list[structlog.typing.Processor], render: structlog.typing.Processor) -> None:
    """Warnings of libraries, asyncio's among them, as events like ours."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=processors,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for library in _TELL_EACH_RECONNECT:
        logging.getLogger(library).propagate = False


def tell_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For sys.excepthook."""
    structlog.get_logger().critical("stopped by an error", exc_info=(kind, error, trace))


def _level(text: str) -> str:
    return one_of(LEVELS)(text.lower()).upper()
