"""Pruning narrows a trained network to its budget, and keeps the channels that a score finds most important."""
