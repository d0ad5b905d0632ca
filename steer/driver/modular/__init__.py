"""Modular pipelines of diffusers, called and searched as the classic ones are."""
