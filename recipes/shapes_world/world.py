"""The stages of the world, each from the files of those before it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from recipes.shapes_world import flow as flow_stage, turbo as turbo_stage, vae as vae_stage
from recipes.shapes_world.clip import PREPROCESS, model_config, train_clip
from recipes.shapes_world.data import make_pool, make_specs
from recipes.shapes_world.denoiser import build_scheduler, train_denoiser
from recipes.shapes_world.preferences import load_preferences, make_preferences
from recipes.shapes_world.recipe import Recipe
from recipes.shapes_world.scorer import score_samples, soup, train_scorer, within_caption_auc
from recipes.shapes_world.stage import rank
from recipes.shapes_world.text import Encoder, build_tokenizer
from recipes.shapes_world.tiny import train_tiny
from recipes.shapes_world.vqa import finish_vqa, start_vqa, write_detector
from recipes.shapes_world.vqa_data import make_samples
from steer.rewards.models.shapes_vqa import FILE
from steer.shapes import weights_folder
from steer.shapes.export import write_open_clip_folder
from steer.shapes.scenes import Spec, Split


HELD_OUT_CAPTIONS = 160


def _tokenizer() -> CLIPTokenizer:
    """The tokenizer, which is the same every time: processes and stages need share no file."""
    with tempfile.TemporaryDirectory() as scratch:
        return build_tokenizer(Path(scratch))


def run_vae(recipe: Recipe, folder: Path, device: str) -> None:
    """Autoencoder and the latents of the whole pool: `vae/`, `latents.safetensors`."""
    if (folder / "latents.safetensors").exists():
        return
    pool = make_pool(recipe.scenes, recipe.seed)
    torch.manual_seed(recipe.seed)
    vae = vae_stage.train_vae(pool, recipe, folder, device)
    if rank():
        return
    vae_stage.normalise(vae, pool, device)
    vae.save_pretrained(folder / "vae")
    mean, std = vae_stage.encode_pool(vae, pool, device)
    save_file({"mean": mean, "std": std}, folder / "latents.safetensors")


def _pool_and_latents(recipe: Recipe, folder: Path) -> tuple[list[Spec], dict[str, Tensor]]:
    return make_specs(recipe.scenes, recipe.seed), load_file(folder / "latents.safetensors")


def run_clip(recipe: Recipe, folder: Path, device: str) -> None:
    """The contrastive open_clip model: `clip/`."""
    if (folder / "clip").exists():
        return
    tokenizer = _tokenizer()
    pool = make_pool(recipe.scenes, recipe.seed, labels=True)
    encode = Encoder(tokenizer)
    model = train_clip(pool, encode, len(tokenizer), recipe, folder, device)
    if rank() == 0:
        write_open_clip_folder(
            folder / "clip", model, model_config(len(tokenizer)), PREPROCESS, tokenizer
        )


def run_denoiser(recipe: Recipe, folder: Path, device: str) -> None:
    """UNet, text encoder and the whole pipeline: `pipeline/`."""
    if (folder / "pipeline").exists():
        return
    tokenizer = _tokenizer()
    specs, latents = _pool_and_latents(recipe, folder)
    model = train_denoiser(specs, latents, tokenizer, recipe, folder, device)
    if rank() == 0:
        parts: dict[str, Any] = {
            "vae": AutoencoderKL.from_pretrained(folder / "vae"),
            "text_encoder": model.text_encoder,
            "tokenizer": tokenizer,
            "unet": model.unet,
            "scheduler": build_scheduler(),
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
        model.to("cpu")
        pipeline = StableDiffusionPipeline(**parts)
        pipeline.save_pretrained(folder / "pipeline")


def run_preferences(recipe: Recipe, folder: Path, device: str) -> None:
    """Judged samples: `preferences/`, of training captions and of held-out ones."""
    pipe = StableDiffusionPipeline.from_pretrained(folder / "pipeline").to(device)
    counts: dict[Split, int] = {
        "train": recipe.preference_captions,
        "held_out": HELD_OUT_CAPTIONS,
    }
    for split, count in counts.items():
        make_preferences(pipe, recipe, folder / "preferences", split, count)


def run_scorer(recipe: Recipe, folder: Path, device: str) -> None:
    """The preference scorer: `scorer/`, and what it is worth: `scorer.json`."""
    if (folder / "scorer").exists():
        return
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip")
    encode = Encoder(tokenizer)
    model = load_clip(folder / "clip")
    held_texts, held = load_preferences(folder / "preferences", "held_out")
    before = score_samples(model.to(device), held_texts, held["images"], encode, device)
    texts, samples = load_preferences(folder / "preferences", "train")
    members = [
        train_scorer(load_clip(folder / "clip"), texts, samples, encode, recipe, folder, device, k)
        for k in range(recipe.scorers)
    ]
    if rank():
        return
    model.load_state_dict(soup([model, *members]))
    after = score_samples(model, held_texts, held["images"], encode, device)
    result = {
        "held_out_captions": len(held_texts),
        "images_per_caption": held["correct"].shape[1],
        "all_met": round(float(held["correct"].mean()), 4),
        "auc_contrastive": round(within_caption_auc(before, held["correct"]), 4),
        "auc_scorer": round(within_caption_auc(after, held["correct"]), 4),
    }
    (folder / "scorer.json").write_text(json.dumps(result, indent=2) + "\n")
    write_open_clip_folder(
        folder / "scorer", model, model_config(len(tokenizer)), PREPROCESS, tokenizer
    )


def run_tiny(recipe: Recipe, folder: Path, device: str) -> None:
    """The tiny decoder for previews: `tiny/`; float16, so that it is what is exported."""
    if (folder / "tiny").exists():
        return
    pipe = StableDiffusionPipeline.from_pretrained(folder / "pipeline").to(device)
    tiny = train_tiny(pipe, recipe, folder)
    if rank() == 0:
        tiny.cpu().half().save_pretrained(folder / "tiny")


def run_flow(recipe: Recipe, folder: Path, device: str) -> None:
    """The flow model: `flow/`. It begins with the finished world, or with the packaged one."""
    if (folder / "flow").exists():
        return
    pipe: Any = StableDiffusionPipeline.from_pretrained(_finished(folder, "pipeline"))
    clip = load_clip(_finished(folder, "clip"))
    tokenizers = pipe.tokenizer, CLIPTokenizer.from_pretrained(_finished(folder, "clip"))
    _prepare_flow(recipe, folder, pipe.vae, clip, device)
    latents = load_file(folder / "flow.safetensors")
    torch.manual_seed(recipe.seed)
    model = flow_stage.FlowDenoiser(
        flow_stage.from_unet(pipe),
        flow_stage.from_clip(clip, tokenizers[1]),
        latents["features"].shape[-1],
    ).to(device)
    specs = make_specs(recipe.scenes, recipe.seed)
    flow_stage.train_flow(model, specs, latents, tokenizers, recipe, folder, device)
    if rank() == 0:
        flow_stage.assemble(model.cpu(), pipe.vae, tokenizers).save_pretrained(folder / "flow")


def run_turbo(recipe: Recipe, folder: Path, device: str) -> None:
    """The few-step model: `turbo/`, a UNet and its scheduler; all else is the pipeline's own."""
    if (folder / "turbo").exists():
        return
    pipe: Any = StableDiffusionPipeline.from_pretrained(_finished(folder, "pipeline"))
    _prepare_flow(recipe, folder, pipe.vae, load_clip(_finished(folder, "clip")), device)
    latents = load_file(folder / "flow.safetensors")
    specs = make_specs(recipe.scenes, recipe.seed)
    student = turbo_stage.train_turbo(pipe, specs, latents, recipe, folder, device)
    if rank() == 0:
        unet = turbo_stage.without_guidance(student.cpu())
        unet.half().save_pretrained(folder / "turbo" / "unet")
        scheduler = turbo_stage.build_scheduler(pipe.scheduler)
        scheduler.save_pretrained(folder / "turbo" / "scheduler")


def _finished(folder: Path, name: str) -> Path:
    """The folder of a finished part, or the packaged one."""
    return folder / name if (folder / name).exists() else weights_folder() / name


def _prepare_flow(
    recipe: Recipe, folder: Path, vae: Any, clip: open_clip.CLIP, device: str
) -> None:
    """Latents and patch features of the pool: `flow.safetensors`."""
    if (folder / "flow.safetensors").exists():
        return
    pool = make_pool(recipe.scenes, recipe.seed)
    mean, std = vae_stage.encode_pool(vae.to(device), pool, device)
    features = flow_stage.patch_features(clip, pool, device)
    save_file({"mean": mean, "std": std, "features": features}, folder / "flow.safetensors")


def run_export(recipe: Recipe, folder: Path, device: str) -> None:
    """Copy the finished world into the package as fp16 safetensors."""
    del recipe, device
    if rank():
        return
    target = weights_folder()
    pipe = StableDiffusionPipeline.from_pretrained(folder / "pipeline")
    pipe.unet.half()
    pipe.vae.half()
    pipe.save_pretrained(target / "pipeline")
    suit_transformers_4(target / "pipeline")
    for name in ("clip", "scorer", "tiny", "turbo"):
        shutil.copytree(folder / name, target / name, dirs_exist_ok=True)
    export_flow(folder / "flow", target / "flow")
    forget_paths(target)


def run_vqa(recipe: Recipe, folder: Path, device: str) -> None:
    """The second judge: `vqa/`, and into the package. It samples the packaged pipelines."""
    path = folder / "vqa" / FILE
    if not path.exists():
        make_samples(recipe, folder / "vqa" / "samples", device)
        if rank():
            return
        model = start_vqa(recipe, folder / "vqa", device)
        finish_vqa(model, recipe, folder / "vqa")
        write_detector(model, path)
    target = weights_folder() / "vqa" / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def forget_paths(folder: Path) -> None:
    """Take where a model was loaded from out of its configuration."""
    for path in folder.rglob("*.json"):
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict) and found.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def export_flow(folder: Path, target: Path) -> None:
    """The flow model in float16, without the autoencoder, which is the pipeline's own."""
    pipe: Any = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None
    )
    pipe.transformer.half()
    pipe.save_pretrained(target)
    shutil.rmtree(target / "vae")
    for number in ("", "_2"):
        suit_transformers_4(target, f"text_encoder{number}", f"tokenizer{number}")


def suit_transformers_4(
    pipeline: Path, encoder: str = "text_encoder", tokenizer: str = "tokenizer"
) -> None:
    """Write a saved pipeline's text encoder and tokenizer anew, for transformers 4 and 5 alike.

    transformers 5 saves a text encoder of its own without the `text_model.` before each name, and a
    tokenizer as `tokenizer.json` alone. transformers 4 would read both in silence: random weights,
    and another tokenizer.
    """
    weights = pipeline / encoder / "model.safetensors"
    prefix, apart = "text_model.", "text_projection.weight"
    state = {
        k if k == apart else f"{prefix}{k.removeprefix(prefix)}": v
        for k, v in load_file(weights).items()
    }
    save_file(state, weights, {"format": "pt"})
    folder = pipeline / tokenizer
    if not (folder / "tokenizer.json").is_file():  # saved by transformers 4
        return
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    merges = (" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


def load_clip(folder: Path) -> open_clip.CLIP:
    """An exported open_clip folder as a float32 model."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"].pop("hf_tokenizer_name", None)
    model = open_clip.CLIP(**config)
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    return model
