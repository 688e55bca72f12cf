"""Runs replicas on one node's GPUs and answers their requests."""
