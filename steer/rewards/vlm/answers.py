"""How likely a vision-language model is to answer a question about an image in given words.

Any model of transformers' `AutoModelForImageTextToText`, decoder-only or encoder-decoder, through
its own chat template. Images go through its own processor, or, for Qwen's models, through the same
operations on tensors, which have a gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Literal, TypeAlias

import torch
import transformers
from packaging.version import Version
from PIL import Image
from torch import Tensor

from steer.core.errors import RewardError
from steer.rewards.clip.preprocess import work_dtype
from steer.rewards.inputs import as_pictures
from steer.rewards.vlm.patches import Patches


_PADDED: dict[str, Any] = (  # how a chat template is told to pad its batch
    {"processor_kwargs": {"padding": True}}
    if Version(transformers.__version__).major >= 5
    else {"padding": True}
)
_RESTATED = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")
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

    Attributes:
        patches: The images' way on tensors; `None` where they go through the processor, in 8 bits
            and without a gradient.
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
        takes = inspect.signature(model.forward).parameters
        self._keeps, self._kinds = "logits_to_keep" in takes, "mm_token_type_ids" in takes
        known = type(processor).__name__ in _RESTATED and bool(processor.chat_template)
        self.patches = Patches.from_processor(processor.image_processor) if known else None

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
        images: Tensor,
        questions: Sequence[str],
        template: Mapping[str, Any] | None = None,
        *,
        padding: Literal["left", "right"] = "right",
    ) -> dict[str, Any]:
        """One question per image as the model's inputs, on the device.

        Args:
            images: `(B, 3, H, W)` float in [0, 1].
            questions: Texts; they go through the chat template, if the processor has one. Otherwise
                they follow the image token.
            template: Variables for the chat template.
            padding: Where; only models with `patches` are ever padded on the left.

        Raises:
            ValueError: Images that the model does not take.
            RewardError: The processor draws the text into the image, or drops it.
        """
        if self.patches:
            return self._restated(self.patches, images, questions, template or {}, padding)
        with _one_at_a_time:  # fast tokenizers keep padding and truncation in themselves
            batch = self._processed(as_pictures(images), questions, template or {})
        if "input_ids" not in batch:
            raise RewardError(
                f"{type(self.processor).__name__} makes no text tokens: the model cannot be asked, "
                "pass another"
            )
        batch.pop("labels", None)  # PaliGemma's would ask for the training loss
        return dict(batch.to(self.device, self.model.dtype))

    def _restated(
        self,
        patches: Patches,
        images: Tensor,
        questions: Sequence[str],
        template: Mapping[str, Any],
        padding: str,
    ) -> dict[str, Any]:
        """What the processor of a Qwen model returns, on the images' own graph."""
        images = images.to(self.device, work_dtype(self.model.dtype))
        pixels, grid = patches(images)
        mark = self.processor.image_token
        marks = mark * patches.tokens(grid)
        with _one_at_a_time:
            texts = self.processor.apply_chat_template(
                [_user(None, text) for text in questions],
                add_generation_prompt=True,
                tokenize=False,
                **template,
            )
            batch = self.tokenizer(
                [text.replace(mark, marks, 1) for text in texts],
                padding=True,
                padding_side=padding,
                return_tensors="pt",
            ).to(self.device)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self._kinds:
            inputs["mm_token_type_ids"] = (
                batch.input_ids == self.model.config.image_token_id
            ).int()
        return inputs | {"pixel_values": pixels.to(self.model.dtype), "image_grid_thw": grid}

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

    @torch.no_grad()
    def write(self, inputs: dict[str, Any], tokens: int) -> list[str]:
        """What the model replies, greedily, at most so many tokens.

        Args:
            inputs: Padded on the left.
            tokens: The bound.
        """
        plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        written = self.model.generate(**inputs, max_new_tokens=tokens, use_cache=True, **plain)
        new = written[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)

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


def variants(
    answerer: Answerer, option: str, answers: Sequence[str], *, single: bool = False
) -> list[Tokens]:
    """Ways to write one answer as token ids: the distinct ones of the shortest length.

    A longer way is left out, since its first token says little: where `" 4"` is a space and a
    `"4"`, the space would count as a 4.

    Args:
        answerer: Its vocabulary is used.
        option: What the caller's argument is called, for errors.
        answers: The ways.
        single: Refuse a vocabulary that has none of them as one token.

    Raises:
        ValueError: No list of ways, a way that the vocabulary lacks, or see `single`.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"{option}={answers!r}: pass a list of ways to write the answer")
    found = dict.fromkeys(answerer.tokens(answer) for answer in answers)
    shortest = min(map(len, found))
    if single and shortest > 1:
        raise ValueError(
            f"{option}={list(answers)!r}: the model's vocabulary splits each of them into several "
            "tokens, so its first token does not answer the question: pass a model that has one of "
            f"them whole, or {option}= with other ways to write the answer"
        )
    return [tokens for tokens in found if len(tokens) == shortest]


def _user(image: Image.Image | None, question: str) -> list[dict[str, Any]]:
    picture = {"type": "image"} if image is None else {"type": "image", "image": image}
    content = [picture, {"type": "text", "text": question}]
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
