"""diffusers' pipeline tests as cases: a pipeline of random weights, the inputs of a short call."""

from __future__ import annotations

import importlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)
class Case:
    """One test class.

    Attributes:
        key: `folder.module:Class`, with `+ip` where an IP-Adapter is loaded.
        test: The class, which has `get_dummy_components` and `get_dummy_inputs`.
        adapter: Whether an IP-Adapter is loaded, and given embeddings.
    """

    key: str
    test: type
    adapter: bool = False

    @property
    def pipeline(self) -> Any:
        """The pipeline's class."""
        return getattr(self.test, "pipeline_class")  # noqa: B009

    @cached_property
    def _instance(self) -> Any:
        try:
            return self.test()
        except ValueError:
            return self.test("setUp")  # unittest wants the name of a test

    def build(self) -> Any:
        """The pipeline, in evaluation mode."""
        seed(0)
        pipe = self.pipeline(**_on_cpu(self._instance.get_dummy_components))
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        pipe.set_progress_bar_config(disable=True)
        if self.adapter:
            _load_adapter(pipe)
        return pipe

    def inputs(self, pipe: Any, **more: Any) -> dict[str, Any]:
        """The test's arguments, always from the same seeds, with `more` in place of its own."""
        seed(0)
        found = dict(_on_cpu(self._instance.get_dummy_inputs))
        if self.adapter:
            found |= _adapter_inputs(pipe)
        found |= {name: list(v) if isinstance(v, list) else v for name, v in more.items()}
        found.pop("return_dict", None)
        seed(1)
        return found


def discover(folder: Path) -> tuple[list[Case], dict[str, str]]:
    """The cases below `folder/tests/pipelines`, and why modules there cannot be imported."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    found: list[Case] = []
    broken: dict[str, str] = {}
    for path in sorted((folder / "tests" / "pipelines").glob("*/test_*.py")):
        if "onnx" in path.stem:
            continue
        try:
            module = importlib.import_module(f"tests.pipelines.{path.parent.name}.{path.stem}")
        except Exception as error:
            broken[f"{path.parent.name}.{path.stem}"] = f"{type(error).__name__}: {error}"
        else:
            found.extend(_cases(module, f"{path.parent.name}.{path.stem}"))
    return found, broken


def _cases(module: Any, name: str) -> Iterator[Case]:
    """The test classes of a module; those that build the same pipeline and inputs count once."""
    seen: set[tuple[str, ...]] = set()
    for test in list(vars(module).values()):
        if not _is_test(test, module.__name__):
            continue
        makers = (test.get_dummy_components.__qualname__, test.get_dummy_inputs.__qualname__)
        same = (test.pipeline_class.__name__, *makers)
        if same in seen:
            continue
        seen.add(same)
        yield Case(f"{name}:{test.__name__}", test)
        if _takes_adapter(test):
            yield Case(f"{name}:{test.__name__}+ip", test, adapter=True)


def _is_test(test: Any, module: str) -> bool:
    return (
        isinstance(test, type)
        and test.__module__ == module
        and isinstance(getattr(test, "pipeline_class", None), type)
        and hasattr(test, "get_dummy_components")
        and hasattr(test, "get_dummy_inputs")
    )


def _takes_adapter(test: Any) -> bool:
    mixed_in = any("IPAdapterTesterMixin" in base.__name__ for base in test.__mro__)
    call = inspect.signature(test.pipeline_class.__call__).parameters
    return mixed_in or "ip_adapter_image_embeds" in call


def seed(number: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _on_cpu(make: Callable[..., Any]) -> Any:
    takes_device = "device" in inspect.signature(make).parameters
    return make(device="cpu") if takes_device else make()


def _is_unet(pipe: Any) -> bool:
    return getattr(pipe, "unet", None) is not None


def _load_adapter(pipe: Any) -> None:
    """Random IP-Adapter weights, as diffusers' own tests make them."""
    if _is_unet(pipe):
        common = importlib.import_module("tests.pipelines.test_pipelines_common")
        pipe.unet._load_ip_adapter_weights(common.create_ip_adapter_state_dict(pipe.unet))
    else:
        flux = importlib.import_module("tests.models.transformers.test_models_transformer_flux")
        weights = flux.create_flux_ip_adapter_state_dict(pipe.transformer)
        pipe.transformer._load_ip_adapter_weights(weights)
    pipe.set_ip_adapter_scale(1.0)


def _adapter_inputs(pipe: Any) -> dict[str, Any]:
    """Image embeddings for the adapter; with a negative prompt where guidance needs one."""
    if _is_unet(pipe):
        embeds = _normal(2, 1, pipe.unet.config.get("cross_attention_dim", 32))
        return {"ip_adapter_image_embeds": [embeds]}
    embeds = _normal(1, 1, pipe.transformer.config.get("pooled_projection_dim", 32))
    found: dict[str, Any] = {
        "ip_adapter_image_embeds": [embeds],
        "negative_ip_adapter_image_embeds": [torch.zeros_like(embeds)],
    }
    if "true_cfg_scale" in inspect.signature(type(pipe).__call__).parameters:
        found |= {"negative_prompt": "", "true_cfg_scale": 4.0}
    return found


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))
