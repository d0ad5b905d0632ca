"""steer judged by diffusers' own pipeline tests. Nothing is downloaded, so that runs are alike."""

from __future__ import annotations

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
