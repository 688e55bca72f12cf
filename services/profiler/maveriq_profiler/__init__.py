"""Measures what a model costs on a GPU type, from cuts of one to a few layers."""
