"""Inpainting: what lies under the mask is searched, the rest stays."""

from diffusers import StableDiffusionInpaintPipeline
from PIL import Image, ImageDraw

import steer


picture = Image.new("RGB", (512, 512), "lightblue")
mask = Image.new("L", (512, 512))
ImageDraw.Draw(mask).rectangle((128, 128, 384, 384), fill=255)

pipe = StableDiffusionInpaintPipeline.from_pretrained(
    "stable-diffusion-v1-5/stable-diffusion-inpainting"
)
guided = steer.guided(pipe, reward="hpsv2", method=steer.Prune(start=6, keep=(3,), at=(0.5,)))
out = guided("a red kite in the sky", image=picture, mask_image=mask, num_inference_steps=20)
out.images[0].save("inpaint.png")
