"""Predicts every engine configuration of a model and ranks those that meet an intent."""
