"""What every value and message on the broker is made of."""

from typing import ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A fact that travels inside a message: immutable, compared by content."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class DoorValue(Value):
    """A value written by producers: an unknown field is an error, because it is a typo."""

    model_config = ConfigDict(extra="forbid")


class Message(Value):
    """One subclass = one topic = one JSON Schema. The body is the payload, nothing else:
    message id, cause, deadline and reply address are AMQP properties, set by `maveriq.bus`.
    """

    topic: ClassVar[str]
    """Routing key: <noun>.<past participle>.v<major>."""

    routed_by: ClassVar[str | None] = None
    """Field whose value ends the routing key, so that one receiver gets only what is its own."""

    rest_s: ClassVar[float] = 0.0
    """How long it lies on the broker before it is delivered."""

    @property
    def routing_key(self) -> str:
        if self.routed_by is None:
            return self.topic
        return f"{self.topic}.{getattr(self, self.routed_by)}"

    @property
    def fact(self) -> str | None:
        """What happens once and is told under one message id, whoever tells it and however often, so that who counts
        such messages can drop repeats; None: the id comes from the cause."""
        return None

    @property
    def correlation(self) -> UUID | None:
        """The deployment that this message is about; None for messages about nodes and models."""
        deployment_id = getattr(self, "deployment_id", None)
        return deployment_id if isinstance(deployment_id, UUID) else None


class DoorMessage(Message):
    """A message written by producers: strict, as `DoorValue`."""

    model_config = ConfigDict(extra="forbid")
