"""The page: its widgets, and what happens when they are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import gradio as gr

from steer.core.files.run_folder import PAGE_FILE, RunFolder
from steer.jobs.sample_job import COMPUTE
from steer.jobs.studio.cost import in_words, predicted
from steer.jobs.studio.runs import Ask, Update, draw
from steer.jobs.studio.studio import Studio
from steer.jobs.studio.view import gallery, shown, status


_DEFAULT = "chosen by compute"
_EXAMPLE = "a red circle left of a blue square"
_WAITING = "**Waiting** for the pipeline; one picture is drawn at a time."
_MOST = 16


@dataclass(eq=False)
class Page:
    """What the widgets do; whoever has the page open is known by the session's hash.

    Attributes:
        studio: What there is to draw with.
        stops: Of every session whose run is going or waiting.
    """

    studio: Studio
    stops: dict[str, Event] = field(default_factory=dict)

    def cost(self, reward: str, method: str, compute: float, steps: int | None) -> str:
        """What a run with these values would cost, or what is wrong with them."""
        try:
            job = Ask("a", reward, 0, steps, _named(method), compute).job(self.studio)
            guided = self.studio.guides[reward]
            cost = predicted(guided, _named(method), compute, job.steps or self.studio.steps)
        except ValueError as error:
            return str(error)
        return in_words(cost, self.studio.paces.get(reward))

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """A run is asked for: it waits for its turn."""
        self.stops[str(request.session_hash)] = Event()
        return _WAITING, _off(), gr.update(interactive=True), "", _off()

    def run(
        self,
        prompt: str,
        reward: str,
        method: str,
        compute: float,
        seed: int | None,
        steps: int | None,
        runs: list[RunFolder],
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """A run: what the status line, the picture, the report and the gallery show."""
        stop = self.stops.setdefault(str(request.session_hash), Event())
        ask = Ask(prompt, reward, seed, steps, _named(method), compute)
        if stop.is_set():
            yield "**Stopped** before it began.", "", _off(), gallery(runs), runs
            return
        for update in draw(self.studio, ask, stop):
            if update.run is None:
                yield status(update), _live(update, reward), _off(), gr.update(), runs
                continue
            runs = [*runs, update.run]
            report = gr.update(value=str(update.run.folder / PAGE_FILE), interactive=True)
            yield status(update), shown(update, reward), report, gallery(runs), runs

    def ended(
        self,
        reward: str,
        method: str,
        compute: float,
        steps: int | None,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        """The run is over, whatever came of it."""
        self.stops.pop(str(request.session_hash), None)
        cost = self.cost(reward, method, compute, steps)
        return gr.update(interactive=True), _off(), cost

    def stop(self, request: gr.Request) -> None:
        """End the session's own run with the best so far."""
        stop = self.stops.get(str(request.session_hash))
        if stop is not None:
            stop.set()


def _off() -> Any:
    return gr.update(interactive=False)


def _named(method: str) -> str | None:
    return None if method == _DEFAULT else method


def _live(update: Update, reward: str) -> str:
    return "" if update.state == "failed" else shown(update, reward)


def make_page(studio: Studio) -> gr.Blocks:
    """The page over a studio: one run at a time, the others wait."""
    page = Page(studio)
    with gr.Blocks(title="steer", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(f"# steer\n{_about(studio)}", elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                prompt = gr.Textbox(
                    _EXAMPLE if studio.base.pipeline.startswith("shapes") else "",
                    label="Prompt",
                    lines=2,
                    elem_id="prompt",
                )
                reward = gr.Dropdown(
                    list(studio.rewards),
                    value=studio.rewards[0],
                    label="Reward",
                    visible=len(studio.rewards) > 1,
                )
                compute = gr.Slider(
                    1, _MOST, COMPUTE, step=0.5, label="Compute, in plain calls", elem_id="compute"
                )
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, min_width=80, elem_id="seed")
                    steps = gr.Number(
                        studio.steps, label="Steps", precision=0, min_width=80, elem_id="steps"
                    )
                method = gr.Dropdown(
                    [_DEFAULT, *studio.methods], value=_DEFAULT, label="Method", elem_id="method"
                )
                effort = [reward, method, compute, steps]
                cost = gr.Markdown(
                    page.cost(studio.rewards[0], _DEFAULT, COMPUTE, studio.steps), elem_id="cost"
                )
                with gr.Row():
                    begin = gr.Button("Draw", variant="primary", min_width=80, elem_id="draw")
                    stop = gr.Button(
                        "Stop", variant="stop", interactive=False, min_width=80, elem_id="stop"
                    )
                report = gr.DownloadButton(
                    "Download the report", interactive=False, elem_id="report"
                )
            with gr.Column(scale=7, min_width=480):
                line = gr.Markdown("", elem_id="status")
                picture = gr.HTML("", elem_id="picture")
                pictures = gr.HTML("", elem_id="pictures")
        runs = gr.State([])
        gr.on(
            [blocks.load, *(widget.change for widget in effort)],
            page.cost,
            effort,
            cost,
            queue=False,
            show_progress="hidden",
        )
        gr.on(
            [begin.click, prompt.submit],
            page.begin,
            None,
            [line, begin, stop, picture, report],
            queue=False,
            show_progress="hidden",
        ).then(
            page.run,
            [prompt, reward, method, compute, seed, steps, runs],
            [line, picture, report, pictures, runs],
            concurrency_limit=1,
            show_progress="hidden",
        ).then(page.ended, effort, [begin, stop, cost], queue=False, show_progress="hidden")
        stop.click(page.stop, queue=False, show_progress="hidden")
        blocks.unload(page.stop)
    return blocks.queue(default_concurrency_limit=1)


def _about(studio: Studio) -> str:
    judges = dict.fromkeys(name for held in studio.judges.values() for name in held)
    held = f", judged by {', '.join(judges)}, which the search never sees" if judges else ""
    rewards = " or ".join(studio.rewards)
    return f"Pipeline {studio.base.pipeline}, steered by the reward {rewards}{held}."
