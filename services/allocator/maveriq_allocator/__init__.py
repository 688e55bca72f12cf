"""Holds fragments of GPU memory for replicas, and decides the layers of each stage."""
