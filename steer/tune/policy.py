"""The denoiser that is trained, its reference, and what is saved of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steer.core.errors import TuneError
from steer.tune.config import LoraConfig
from steer.tune.noising import denoiser


class Policy:
    """A pipeline's denoiser, made trainable in place.

    With adapters the reference is the same module with them switched off; otherwise it is a frozen
    copy, made only where the objective asks for one.

    Args:
        pipe: Its denoiser is changed.
        lora: Adapters, or None to train all weights.
        reference: Whether a reference will be asked for.

    Attributes:
        name: `"unet"` or `"transformer"`.
        module: The denoiser.

    Raises:
        TuneError: No such modules to adapt, or a denoiser or pipeline without adapters.
    """

    def __init__(self, pipe: Any, lora: LoraConfig | None, reference: bool) -> None:
        self.name, self.module = denoiser(pipe)
        self._pipeline, self._lora = type(pipe), lora
        self._copy: nn.Module | None = None
        self._moved: Mapping[str, Tensor] | None = None
        self.module.eval()
        if lora is None:
            if reference:
                self._copy = copy.deepcopy(self.module).requires_grad_(False)
            self.module.requires_grad_(True)
        else:
            self.module.requires_grad_(False)
            self._adapt(lora)

    def _adapt(self, lora: LoraConfig) -> None:
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig as PeftConfig

        kind = type(self.module).__name__
        if not hasattr(self.module, "add_adapter") or not hasattr(
            self._pipeline, "save_lora_weights"
        ):
            raise TuneError(
                f"lora: {self._pipeline.__name__} with {kind} cannot load adapters in diffusers; "
                "train the whole denoiser with `lora: false`"
            )
        if getattr(self.module, "peft_config", None):
            raise TuneError(
                f"lora: the {self.name} has adapters already; fuse them into its weights first"
            )
        config = PeftConfig(
            r=lora.rank,
            lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # pyright: ignore[reportArgumentType]
            target_modules=list(lora.targets),
            init_lora_weights="gaussian",
        )
        try:
            self.module.add_adapter(config)
        except ValueError as error:
            raise TuneError(
                f"lora.targets={list(lora.targets)!r}: {kind} has no such modules ({error})"
            ) from error
        cast_training_params(self.module, torch.float32)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The reference model, without gradients."""
        with torch.no_grad():
            if self._lora is None:
                assert self._copy is not None
                yield self._copy
                return
            if self._moved is not None:
                with self.holding(self._moved):
                    yield self.module
                return
            self.module.disable_adapters()
            try:
                yield self.module
            finally:
                self.module.enable_adapters()

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """With these values in the trained parameters for a while; not to be trained meanwhile."""
        own = self.parameters()
        before = {name: parameter.data for name, parameter in own.items()}
        torch.clear_autocast_cache()
        for name, parameter in own.items():
            parameter.data = weights[name]
        try:
            yield
        finally:
            for name, parameter in own.items():
                parameter.data = before[name]
            torch.clear_autocast_cache()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the trained parameters, where they are."""
        return {name: p.detach().clone() for name, p in self.parameters().items()}

    def move_reference(self, weights: Mapping[str, Tensor]) -> None:
        """From now on the reference is the denoiser with these trained parameters.

        Args:
            weights: As `weights` gives them, on the denoiser's device; kept, not copied.
        """
        if self._copy is None:
            self._moved = weights
            return
        with torch.no_grad():
            for name, parameter in self._copy.named_parameters():
                parameter.copy_(weights[name])

    def to(self, device: torch.device) -> None:
        """Move the reference's copy along."""
        if self._copy is not None:
            self._copy.to(device)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put trained parameters back; TuneError where they do not fit."""
        own = self.parameters()
        if own.keys() != weights.keys():
            raise TuneError("checkpoint: holds other parameters than the denoiser trains")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])

    def save(self, folder: Path) -> Path:
        """Write the denoiser as it is now, in the layout that diffusers loads.

        Adapters: `pytorch_lora_weights.safetensors`, for `pipe.load_lora_weights(folder)`. Whole
        denoiser: the folder `unet/` or `transformer/`, for `from_pretrained(..., subfolder=...)`.

        Returns:
            What was written: the file or the subfolder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._lora is None:
            self.module.save_pretrained(folder / self.name)
            return folder / self.name
        from peft.utils import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.module)  # in peft's names, whatever it adapts
        options = self.module.peft_config["default"].to_dict()
        # An older peft refuses settings that it does not know, even those that are not set.
        options.pop("peft_version", None)
        metadata = {name: value for name, value in options.items() if value is not None}
        layers = {
            f"{self.name}_lora_layers": state,
            f"{self.name}_lora_adapter_metadata": metadata,
        }
        self._pipeline.save_lora_weights(folder, **layers)
        return folder / "pytorch_lora_weights.safetensors"
