"""Flux with model offload: a linear preview leaves the transformer where it is."""

import torch
from diffusers import FluxPipeline

import steer


pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()
guided = steer.guided(pipe, reward="hpsv2", preview="linear")
out = guided("a shop sign that reads steer", compute=2, num_inference_steps=20)
out.images[0].save("flux.png")
print(out.report)
