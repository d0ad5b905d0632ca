"""A list of prompts through a guided pipeline into a run folder, resumable prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from steer.core.errors import SteerError
from steer.core.files.atomic import plain
from steer.core.files.png import save_png
from steer.core.files.run_folder import IMAGES, RunFolder
from steer.core.files.versions import versions
from steer.core.seeds import prompt_seed
from steer.core.warn import warn
from steer.driver.decoding.nan import decoding_of
from steer.driver.denoisers import parse_blend
from steer.driver.facts import quiet
from steer.jobs.call import check_known
from steer.jobs.device import usable_device
from steer.jobs.effort import effort
from steer.jobs.pipelines import default_steps, dtype_of, load_pipeline
from steer.jobs.reward_loader import RewardLoader, reward_parts
from steer.jobs.sample_job import SampleJob
from steer.jobs.spread.worker import Crew, Worker
from steer.methods.text import parse_method
from steer.pipeline.guided import guided
from steer.pipeline.progress import Progress
from steer.pipeline.report.call import Report
from steer.rewards.parts import check_prompts, is_relative, scores_of
from steer.shapes import oracle
from steer.shapes.worlds import NAMES


_UNSCORED = {"reward": None, "judges": {}, "verdict": None}


@dataclass
class Drawn:
    """One prompt's entry of `run.json`, and its files by name: an image and what its file says."""

    entry: dict[str, Any]
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Put the files into a run's folder."""
        (folder / IMAGES).mkdir(exist_ok=True)
        for name, (image, data) in self.files.items():
            save_png(folder / name, image, data)


@dataclass(frozen=True)
class Prompt:
    """A prompt to be drawn, by its index in the job."""

    index: int
    text: str

    def __str__(self) -> str:
        return f"prompt {self.index} ({self.text!r})"


class Sampler(Worker[Prompt, Drawn]):
    """A loaded job: draws one prompt at a time.

    Args:
        job: What to do.
        pipe: Its pipeline; loaded when left out.
        load: What loads a reward by its name; `RewardLoader.load` when left out.

    Raises:
        SteerError, ValueError: The pipeline, reward, method or device is not to be had.
    """

    def __init__(
        self, job: SampleJob, pipe: Any = None, load: Callable[..., Any] | None = None
    ) -> None:
        if job.method:
            parse_method(job.method)  # a mistake is told before anything is loaded
        blend = parse_blend(job.blend) if job.blend is not None else None
        for text in (job.reward, *job.judges):
            reward_parts(text)
        self.job, self.device = job, usable_device(job.device)
        devices = None if job.devices is None else [usable_device(name) for name in job.devices]
        self.dtype = dtype_of(job.dtype, self.device, job.pipeline)
        load = load or RewardLoader(self.device).load
        self.reward = load(job.reward) if job.scale is None else load(job.reward, job.scale)
        self.judges = [load(text) for text in job.judges]
        for reward in (self.reward, *self.judges):
            check_prompts(reward, job.prompts)
        self.pipe = (
            pipe if pipe is not None else load_pipeline(job.pipeline, self.device, self.dtype)
        )
        check_known(self.pipe, job.call or {})
        self.steps = job.steps or default_steps(self.pipe, job.pipeline)
        self.blended = job.tuned is not None or job.blend is not None
        self.guided = guided(
            self.pipe,
            self.reward,
            **effort(job.method or None, job.compute),
            judge=self.judges,
            lane_width=job.lane_width,
            devices=devices,
            keep_images=True,
            tuned=job.tuned,
            blend=blend,
            preview=job.preview,
            plans=job.plans,
        )
        self.about = self.configuration()

    def configuration(self) -> dict[str, Any]:
        """What the job's arguments came to, for `run.json`."""
        return {
            "pipeline_class": type(self.pipe).__name__,
            "scheduler": type(self.pipe.scheduler).__name__,
            "steps": self.steps,
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def work_all(self, units: Iterable[Prompt]) -> Iterator[tuple[Prompt, Drawn]]:
        """Draw prompts one after the other, each under the pipeline's own bar."""
        units = list(units)
        for position, unit in enumerate(units):
            self.pipe.set_progress_bar_config(
                desc=f"prompt {position + 1}/{len(units)}", leave=False
            )
            yield unit, self.work(unit)

    def work(self, unit: Prompt, on_step: Callable[[Progress], None] | None = None) -> Drawn:
        """Draw a prompt.

        `on_step` follows the guided call and may stop it; a stopped one has no plain call beside.
        """
        job, index, prompt = self.job, unit.index, unit.text
        seed, told = prompt_seed(job.seed, index), {} if on_step is None else {"on_step": on_step}
        out = self._call(self.guided, prompt, seed, job.images_per_prompt, **told)
        report, trace = out.report, plain(out.report.trace.events)
        images = {f"{IMAGES}/{index:04d}-{k}.png": im for k, im in enumerate(out.images)}
        entry: dict[str, Any] = {
            "index": index,
            "prompt": prompt,
            "seed": seed,
            "method": repr(report.method),
            "steps": report.steps,
            "images": list(images),
            "rewards": plain(out.rewards),
            "accepted": all(out.accepted),
            "judges": plain(report.judges),
            "verdicts": self._verdicts(out.images, prompt),
            "base": None,
            "ledger": report.ledger.to_dict(),
        }
        drawn = Drawn(entry)
        for rank, (name, image) in enumerate(images.items()):
            reward = entry["rewards"][rank]
            drawn.files[name] = image, self._metadata(entry, reward=reward, rank=rank)
        if job.base and not report.stopped:
            same = report.chosen == [(0, 0)] and not self.blended
            image, broken = (out.images[0], False) if same else self._plain(prompt, seed)
            name = f"{IMAGES}/{index:04d}-plain.png"
            known = _UNSCORED if broken else self._judge(image, prompt, report)
            entry["base"] = {"image": name, **known}
            reward = entry["base"]["reward"]
            drawn.files[name] = image, self._metadata(entry, reward=reward, method=None)
        entry["previews"] = _add_previews(drawn, report.trace.images)
        entry["trace"] = trace
        return drawn

    def _call(self, pipe: Any, prompt: str, seed: int, images: int, **more: Any) -> Any:
        scale = self.job.guidance_scale
        return pipe(
            prompt,
            num_inference_steps=self.steps,
            num_images_per_prompt=images,
            generator=torch.Generator("cpu").manual_seed(seed),
            **({} if scale is None else {"guidance_scale": scale}),
            **(self.job.call or {}),
            **more,
        )

    def _plain(self, prompt: str, seed: int) -> tuple[Image.Image, bool]:
        """The image of the plain call from the same seed, and whether it has NaN pixels."""
        with quiet(self.pipe), decoding_of(self.pipe) as decoded:
            image = self._call(self.pipe, prompt, seed, 1).images[0]
        if any(decoded.rows):
            warn(
                f"the plain image of {prompt!r} has NaN pixels, which a PNG shows as black: it has "
                "no score; use dtype=float32 (--dtype float32)"
            )
        return image, any(decoded.rows)

    def _judge(self, image: Image.Image, prompt: str, report: Report) -> dict[str, Any]:
        """The plain image's scores: those of particle 0 where the search finished it untuned."""
        verdicts, judges = self._verdicts([image], prompt), {}
        for judge in self.judges:
            known = None if self.blended else report.base_judges.get(judge.name, [None])[0]
            judges[judge.name] = self._score(judge, image, prompt, known)
        known = None if self.blended else report.base_reward[0]
        return {
            "reward": self._score(self.reward, image, prompt, known),
            "judges": judges,
            "verdict": verdicts[0] if verdicts else None,
        }

    def _score(
        self, reward: Any, image: Image.Image, prompt: str, known: float | None
    ) -> float | None:
        if known is not None or is_relative(reward):  # which no image alone can be given
            return known
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            return float(scores_of(reward.name, reward, pixels.to(self.device), [prompt])[0])

    def _verdicts(self, images: Sequence[Image.Image], prompt: str) -> list[dict[str, Any]] | None:
        """The oracle's word, where the world is its own and the prompt is one of its captions."""
        if self.job.pipeline not in NAMES:
            return None
        try:
            return [asdict(verdict) for verdict in oracle(list(images), prompt)]
        except ValueError:
            return None

    def _metadata(self, entry: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """What an image's file says of itself; `method` None marks the plain call's image."""
        job = {k: v for k, v in self.job.to_dict().items() if k != "prompts"}
        kept = {k: entry[k] for k in ("prompt", "index", "seed", "method")}
        kept |= {"steps": self.steps, **more}
        return {
            **kept,
            "arguments": job,
            "configuration": self.configuration(),
            "versions": versions(),
        }


def _add_previews(
    drawn: Drawn, images: Mapping[tuple[int, int, int], Any]
) -> dict[str, Any] | None:
    """One sheet of all previews of a prompt, side by side, and which is where."""
    tiles = {(p, step): np.asarray(im) for (_, p, step), im in images.items()}
    if not tiles:
        return None
    height, width = next(iter(tiles.values())).shape[:2]
    tiles = {key: tile for key, tile in tiles.items() if tile.shape[:2] == (height, width)}
    name = f"{IMAGES}/{drawn.entry['index']:04d}-previews.png"
    drawn.files[name] = Image.fromarray(np.concatenate(list(tiles.values()), axis=1)), {}
    return {"file": name, "size": [width, height], "tiles": [list(key) for key in tiles]}


def draw_missing(run: RunFolder, crew: Crew[Prompt, Drawn]) -> Iterator[Mapping[str, Any]]:
    """Draw the prompts that `run` lacks, one entry at a time; the run is valid at every moment.

    At its end the run is finished but for its page: `run.close("finished")` when that is written.

    Args:
        run: Its arguments are those of the crew's job.
        crew: A `Sampler`, or several of them in a cluster.

    Raises:
        KeyboardInterrupt: As it came, after the run's status says `interrupted`.
    """
    run.data["configuration"] = dict(crew.about)
    run.close("running")
    prompts = run.data["arguments"]["prompts"]
    missing = [Prompt(index, prompts[index]) for index in run.missing()]
    try:
        for _, drawn in crew.work_all(missing):
            drawn.save(run.folder)
            run.add(drawn.entry)
            yield drawn.entry
    except SteerError:
        run.close("failed")
        raise
    except BaseException:
        run.close("interrupted")
        raise
    run.data["status"] = "finished"
