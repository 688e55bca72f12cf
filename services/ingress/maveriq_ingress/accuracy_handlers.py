"""Accuracy, messages in and out: a measurement is asked for by model, followed, and remembered with the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from maveriq.bus import Handler, Rejected
from maveriq.contracts import (
    AccuracyMeasured,
    AccuracyProgressed,
    AccuracyRequested,
    AccuracySubmitted,
    Fault,
    Message,
    ModelRegistered,
)
from maveriq_ingress.accuracies import Accuracies
from maveriq_ingress.admission import name_another
from maveriq_ingress.learned_accuracy import with_accuracy
from maveriq_ingress.models import Models


@dataclass(frozen=True, slots=True)
class AccuracyHandlers:
    models: Models
    accuracies: Accuracies

    async def on_accuracy_submitted(self, message: AccuracySubmitted) -> AccuracyRequested | None:
        """Raises Rejected: unknown model, or an id that another model's measurement has."""
        registered = await self.models.get(message.model)
        if registered is None:
            raise Rejected(unknown_model(message.model, await self.models.all()))
        asked = AccuracyRequested(
            accuracy_id=message.accuracy_id, model=registered.model, text=message.text, max_tokens=message.max_tokens,
            layers=message.layers,
        )  # fmt: skip
        record = await self.accuracies.begin(asked)
        if record.model != message.model:
            raise Rejected(taken(message))
        return None if record.progress or record.finished else asked  # else it was passed on

    async def on_accuracy_progressed(self, message: AccuracyProgressed) -> None:
        await self.accuracies.learn(message)

    async def on_accuracy_measured(self, message: AccuracyMeasured) -> Message | None:
        """The model first: whoever hears of the end finds it there."""
        known = await self.models.change(message.model.name, lambda model: with_accuracy(model, message))
        await self.accuracies.learn(message)
        return None if known is None else ModelRegistered(model=known)

    def all(self) -> list[Handler[Any]]:
        return [
            Handler(AccuracySubmitted, self.on_accuracy_submitted),
            Handler(AccuracyProgressed, self.on_accuracy_progressed),
            Handler(AccuracyMeasured, self.on_accuracy_measured),
        ]


def unknown_model(name: str, known: Iterable[str]) -> Fault:
    return Fault(field="model", problem=f"no model named {name!r} is registered", remedy=name_another(name, known))


def taken(message: AccuracySubmitted) -> Fault:
    problem = f"{message.accuracy_id} is already used for another model"
    return Fault(field="accuracy_id", problem=problem, remedy="choose a new UUID")
