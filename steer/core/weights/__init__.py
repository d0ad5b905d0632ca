"""Weights on disk and on the hub: downloads with checksums, safe reading."""
