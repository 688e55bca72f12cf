"""Admits intents and requests, over AMQP and HTTP, and tells how deployments fare."""
