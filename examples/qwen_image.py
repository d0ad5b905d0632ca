"""Qwen-Image, a flow model whose guidance needs a negative prompt: the best of a search of 4."""

import torch
from diffusers import QwenImagePipeline

import steer


pipe = QwenImagePipeline.from_pretrained("Qwen/Qwen-Image", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()
guided = steer.guided(pipe, reward="hpsv2", preview="linear")
out = guided(
    "a bakery window with the words fresh bread on it",
    negative_prompt=" ",
    true_cfg_scale=4.0,
    compute=4,
    num_inference_steps=30,
)
out.images[0].save("qwen_image.png")
print(out.report)
