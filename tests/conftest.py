"""Shared set-up: no network, and one thread (the models are tiny, threads only get in the way)."""

from __future__ import annotations

import os

import torch


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
