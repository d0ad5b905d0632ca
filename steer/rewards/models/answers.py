"""How likely a vision-language model is to answer a question about an image in given words.

Any model of transformers' `AutoModelForImageTextToText`, decoder-only or encoder-decoder, through
its own processor and chat template.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import torch
import transformers
from packaging.version import Version
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from steer.core.errors import CheckpointError, RewardError, first_line
from steer.core.weights.reading import stamp


_PADDED: dict[str, Any] = (  # how a chat template is told to pad its batch
    {"processor_kwargs": {"padding": True}}
    if Version(transformers.__version__).major >= 5
    else {"padding": True}
)
_one_at_a_time = Lock()


Tokens: TypeAlias = tuple[int, ...]


class Answerer:
    """A vision-language model and its processor, in evaluation mode, frozen.

    Questions of one batch are padded on the right and read at each row's own last token. In causal
    models what follows a token does not touch it, so padding is exact for every kind of position
    encoding; padding on the left is not, where positions are absolute. A processor that insists on
    the left is read correctly too.

    Args:
        model: From `AutoModelForImageTextToText`.
        processor: Its processor.
        device: Where it computes.
    """

    def __init__(self, model: Any, processor: Any, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.processor = processor
        self.device = device
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "right"
        text_config = model.config.get_text_config()
        text_config.use_cache = False  # nothing is generated
        self.two_stacks = bool(model.config.is_encoder_decoder or text_config.is_encoder_decoder)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def tokens(self, answer: str) -> Tokens:
        """An answer as token ids, without marks of start and end.

        Raises:
            ValueError: It has no tokens, or the vocabulary lacks some.
        """
        ids = tuple(self.tokenizer(answer, add_special_tokens=False).input_ids)
        if not ids or self.tokenizer.unk_token_id in ids:
            raise ValueError(f"answer {answer!r} is not in the model's vocabulary: pass another")
        return ids

    def inputs(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        template: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One question per image as the model's inputs, on the device.

        Args:
            images: RGB.
            questions: Texts; they go through the chat template, if the processor has one. Otherwise
                they follow the image token.
            template: Variables for the chat template.

        Raises:
            RewardError: The processor draws the text into the image, or drops it.
        """
        with _one_at_a_time:  # fast tokenizers keep padding and truncation in themselves
            batch = self._processed(images, questions, template or {})
        if "input_ids" not in batch:
            raise RewardError(
                f"{type(self.processor).__name__} makes no text tokens: the model cannot be asked, "
                "pass another"
            )
        batch.pop("labels", None)  # PaliGemma's would ask for the training loss
        return dict(batch.to(self.device, self.model.dtype))

    def _processed(
        self, images: Sequence[Image.Image], questions: Sequence[str], template: Mapping[str, Any]
    ) -> Any:
        if self.processor.chat_template:
            return self.processor.apply_chat_template(
                [_user(image, text) for image, text in zip(images, questions, strict=True)],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **_PADDED,
                **template,
            )
        texts = [self._plain(text) for text in questions]
        pictures = [[image] for image in images]
        return self.processor(text=texts, images=pictures, padding=True, return_tensors="pt")

    def log_probs(self, inputs: dict[str, Any], answers: Sequence[Tokens]) -> Tensor:
        """`(B, len(answers))` float32: log-probability that the model's reply begins with each.

        The sum over an answer's tokens of their log-probabilities under the full vocabulary. One
        forward pass serves all answers' first tokens; each longer beginning takes one more. (Not
        exact for answers of several tokens where prompts are read both ways, as by PaliGemma.)
        """
        starts = dict.fromkeys(tokens[:i] for tokens in answers for i in range(len(tokens)))
        following = {start: self._next(inputs, start) for start in starts}
        sums = [
            torch.stack([following[t[:i]][:, t[i]] for i in range(len(t))]).sum(0) for t in answers
        ]
        return torch.stack(sums, 1)

    def _next(self, inputs: dict[str, Any], start: Tokens) -> Tensor:
        """`(B, V)` float32 log-probabilities of the token after `start`."""
        if self.two_stacks:
            given = torch.tensor([[self._first(), *start]], device=self.device)
            given = given.expand(len(inputs["input_ids"]), -1)
            logits = self.model(**inputs, decoder_input_ids=given).logits[:, -1]
            return logits.float().log_softmax(-1)
        inputs = _extend(inputs, start)
        ends = _ends(inputs)
        rows = torch.arange(len(ends), device=self.device)
        if self._keeps:  # the vocabulary is large: logits only where a row ends
            kept, place = ends.unique(return_inverse=True)
            logits = self.model(**inputs, logits_to_keep=kept).logits[rows, place]
        else:
            logits = self._whole(inputs)[rows, ends]
        return logits.float().log_softmax(-1)

    def _whole(self, inputs: dict[str, Any]) -> Tensor:
        logits = self.model(**inputs).logits
        if logits.shape[1] != inputs["input_ids"].shape[1]:
            raise RewardError(
                f"{type(self.model).__name__} returns logits for {logits.shape[1]} positions of "
                f"{inputs['input_ids'].shape[1]} tokens: it cannot be read as a reward, pass "
                "another model"
            )
        return logits

    def _first(self) -> int:
        """What an encoder-decoder's decoder starts with."""
        configs = (self.model.generation_config, self.model.config.get_text_config())
        found = [getattr(config, "decoder_start_token_id", None) for config in configs]
        return next((i for i in found if i is not None), self.tokenizer.pad_token_id)

    def _plain(self, question: str) -> str:
        """A question with the image token in front, where the processor does not put one itself."""
        token = getattr(self.processor, "image_token", None)
        token = getattr(token, "content", token)
        if token is None or token in question or hasattr(self.processor, "num_query_tokens"):
            return question
        return f"{token}{question}"


@functools.lru_cache(maxsize=4)
def load_answerer(
    source: str,
    revision: str | None,
    stamps: tuple[Any, ...],
    device: torch.device,
    dtype: torch.dtype | None,
) -> Answerer:
    """Load a model and its processor; once per process for equal arguments.

    Args:
        source: Hub id or folder.
        revision: Commit, tag or branch on the hub.
        stamps: `folder_stamps(source)`, so that a rewritten folder is loaded again.
        device: Where it computes.
        dtype: Precision of the weights; `None` is the stored one.

    Raises:
        CheckpointError: Not found, not readable, not such a model, or weights are missing.
    """
    del stamps
    try:
        with torch.inference_mode(False):
            processor = AutoProcessor.from_pretrained(source, revision=revision)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source, revision=revision, dtype=dtype or "auto", output_loading_info=True
            )
            model, info = loaded
            missing = sorted(info["missing_keys"])
            if not missing:
                return Answerer(model, processor, device)
    except Exception as error:  # transformers raises many kinds
        command = f"hf download {source}" + (f" --revision {revision}" if revision else "")
        raise CheckpointError(
            f"vqa:{source}: cannot be loaded ({type(error).__name__}: {first_line(error)}). It "
            "must be an image-text-to-text model of transformers: a folder with its weights, "
            f"config and processor, or a hub id; where there is a network, run `{command}`, then "
            "copy the cache, or pass checkpoint=FOLDER"
        ) from error
    raise CheckpointError(
        f"vqa:{source}: {len(missing)} weights are missing ({', '.join(missing[:3])}, ...): "
        "download or copy the model again"
    )


def folder_stamps(source: str) -> tuple[Any, ...]:
    """Names, sizes and times of the files in a local model folder; empty for a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        return ()
    return tuple((file.name, *stamp(file)) for file in sorted(folder.iterdir()) if file.is_file())


def _user(image: Image.Image, question: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def _ends(inputs: dict[str, Any]) -> Tensor:
    """Index of each row's last real token, `(B,)`."""
    mask = inputs["attention_mask"]
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)


def _extend(inputs: dict[str, Any], start: Tokens) -> dict[str, Any]:
    """The inputs with `start` after each row's last token; marks of kind go on as they ended."""
    if not start:
        return inputs
    ids, ends = inputs["input_ids"], _ends(inputs)
    at = ends[:, None] + 1 + torch.arange(len(start), device=ids.device)
    rows = torch.arange(len(ids), device=ids.device)
    extended = dict(inputs)
    for name, values in inputs.items():
        if isinstance(values, Tensor) and values.shape == ids.shape:
            pad = values.new_zeros(len(values), len(start))
            new = torch.tensor(start, device=ids.device) if values is ids else None
            new = values[rows, ends][:, None] if new is None else new
            extended[name] = torch.cat([values, pad], 1).scatter(1, at, new.expand(at.shape))
    return extended
