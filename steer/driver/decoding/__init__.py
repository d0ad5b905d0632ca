"""Latents to images or videos, as at the end of a pipeline's call."""
