"""Trains the demo checkpoint and writes the files beside its weights."""
