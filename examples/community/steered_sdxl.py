"""SDXL whose own call searches: a community pipeline, loaded by diffusers from this file.

    pipe = DiffusionPipeline.from_pretrained(
        MODEL, custom_pipeline="steered_sdxl.py", trust_remote_code=True, torch_dtype=torch.bfloat16
    ).to("cuda")
    out = pipe.steer("hpsv2")("a red fox in the snow", compute=4)

For another family put its class in the place of SDXL's.
"""

from typing import Any

from diffusers import StableDiffusionXLPipeline

import steer


class SteeredSDXL(StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` with `compute=` and the other options of a guided call."""

    guided: steer.Guided | None = None

    def steer(self, reward: Any, **options: Any) -> "SteeredSDXL":
        """Search with this reward from now on; options as for `steer.guided`."""
        plain = StableDiffusionXLPipeline.from_pipe(self, torch_dtype=self.dtype)
        self.guided = steer.guided(plain, reward=reward, **options)
        return self

    def __call__(self, *args: Any, **more: Any) -> Any:
        """One guided call, or the plain one before `steer` is called."""
        if self.guided is None:
            return super().__call__(*args, **more)
        return self.guided(*args, **more)
