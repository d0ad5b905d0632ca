"""SDXL with a preference-tuned LoRA at 1.5 times its strength, and a search on top."""

import torch
from diffusers import StableDiffusionXLPipeline

import steer


pipe = StableDiffusionXLPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-base-1.0", torch_dtype=torch.bfloat16
).to("cuda")
lora = "spo-sdxl-lora"  # a name of `steer tuned`; a hub id, a folder or a file does as well
guided = steer.guided(pipe, reward="hpsv2", tuned=lora, blend=steer.RLG(1.5))
out = guided("a lighthouse in a storm", compute=4, guidance_scale=5.0, num_inference_steps=30)
out.images[0].save("lora.png")
print(out.report)
