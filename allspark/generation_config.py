"""ASGenerationConfigBuilder: what a request asks of generation, as a dict under DashInfer's keys."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Self

from ..errors import InvalidArgument
from .multimedia import MultiMediaInfo
from .sampling import check_keys

_CARRIED = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "length_penalty",
    "num_beams",
    "num_return_sequences",
    "min_length",
    "max_length",
    "min_new_tokens",
    "max_new_tokens",
    "no_repeat_ngram_size",
    "bad_words_ids",
)
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_LENGTHS = ("max_length", "max_new_tokens")


class GenerationConfigAdapter:
    """From transformers' generation configuration to DashInfer's keys."""

    @staticmethod
    def from_hf(hf_gen_config: Any) -> dict[str, Any]:
        """The keys that mean something here, of a GenerationConfig (anything with `to_dict`) or of a mapping.

        transformers' early_stopping is about beams and is left out.
        """
        fields = hf_gen_config if isinstance(hf_gen_config, Mapping) else hf_gen_config.to_dict()
        carried = {key: fields[key] for key in _CARRIED if fields.get(key) is not None}
        if "max_new_tokens" in carried:
            carried.pop("max_length", None)
        ASGenerationConfigBuilder.process_eos_tokens(fields.get("eos_token_id"), carried)
        return carried


class ASGenerationConfigBuilder:
    """Each method sets a key and returns the builder; `build` gives the dict, which the requests take too.

    The keys and their meaning are listed in `sampling`. What the model's own configuration suggests gives way
    to what is set here: a length takes the place of the model's length, and a temperature, top_k, top_p or
    min_p turns sampling on where only the model's author chose greedy decoding.
    """

    def __init__(
        self, hf_gen_config: Any = None, seed: int | None = None, eos_token_id: int | None = None
    ) -> None:
        """Begin with the model's configuration, if there is one.

        Args:
            hf_gen_config: transformers' GenerationConfig, or a mapping with its keys.
            seed: None lets the engine draw one for each request.
            eos_token_id: where there is no configuration; None means the model's own.
        """
        self._model: dict[str, Any] = {}
        self._own: dict[str, Any] = {}
        if hf_gen_config is not None:
            self._model = GenerationConfigAdapter.from_hf(hf_gen_config)
        elif eos_token_id is not None:
            self._own["eos_token_id"] = eos_token_id
        if seed is not None:
            self._own["seed"] = seed

    @staticmethod
    def process_eos_tokens(hf_gen_config_token_id: Any, out_dict: MutableMapping[str, Any]) -> None:
        """Put end-of-sequence ids into `out_dict`: the first is the token, all of several are stop words."""
        if isinstance(hf_gen_config_token_id, int):
            out_dict["eos_token_id"] = hf_gen_config_token_id
        elif isinstance(hf_gen_config_token_id, list | tuple) and hf_gen_config_token_id:
            out_dict["eos_token_id"] = hf_gen_config_token_id[0]
            out_dict["stop_words_ids"] = [[token] for token in hf_gen_config_token_id]

    def update(self, update_fields: Mapping[str, Any]) -> Self:
        """Set several keys.

        Raises:
            InvalidArgument: a key is unknown.
        """
        if not isinstance(update_fields, Mapping):
            raise InvalidArgument("update_fields", update_fields, "a mapping from keys to values")
        check_keys(update_fields)
        self._own.update(update_fields)
        return self

    def build(self) -> dict[str, Any]:
        """The configuration, a dict of its own."""
        model = dict(self._model)
        if any(key in self._own for key in _LENGTHS):
            model = {key: value for key, value in model.items() if key not in _LENGTHS}
        if model.get("do_sample") is False:
            if any(key in self._own for key in _SAMPLING):
                model["do_sample"] = True
            elif not self._own.get("do_sample", False):
                model = {key: value for key, value in model.items() if key not in _SAMPLING}
        return {**model, **self._own}

    # DashInfer's keys

    def do_sample(self, flag: bool = True) -> Self:
        """Draw tokens, or take the most likely ones."""
        return self._set("do_sample", flag)

    def early_stopping(self, flag: bool = True) -> Self:
        """End at an end-of-sequence token."""
        return self._set("early_stopping", flag)

    def temperature(self, value: float) -> Self:
        """Randomness; 0 is greedy."""
        return self._set("temperature", value)

    def top_k(self, value: int) -> Self:
        """Keep the most likely tokens; 0 keeps all."""
        return self._set("top_k", value)

    def top_p(self, value: float) -> Self:
        """Keep the most likely tokens of this probability together."""
        return self._set("top_p", value)

    def seed(self, value: int) -> Self:
        """Seed of the request's noise."""
        return self._set("seed", value)

    def max_length(self, value: int) -> Self:
        """Most tokens of prompt and output together."""
        return self._set("max_length", value)

    def min_length(self, value: int) -> Self:
        """Fewest tokens of prompt and output together."""
        return self._set("min_length", value)

    def repetition_penalty(self, value: float) -> Self:
        """Factor against tokens that have appeared."""
        return self._set("repetition_penalty", value)

    def presence_penalty(self, value: float) -> Self:
        """Subtracted once from tokens that were generated."""
        return self._set("presence_penalty", value)

    def frequency_penalty(self, value: float) -> Self:
        """Subtracted from tokens for each time they were generated."""
        return self._set("frequency_penalty", value)

    def length_penalty(self, value: float) -> Self:
        """For beam search alone."""
        return self._set("length_penalty", value)

    def suppress_repetition_in_generation(self, flag: bool = True) -> Self:
        """Let the repetition penalty leave the prompt's tokens alone."""
        return self._set("suppress_repetition_in_generation", flag)

    def no_repeat_ngram_size(self, value: int) -> Self:
        """Length of token sequences that must not come twice; 0 allows all."""
        return self._set("no_repeat_ngram_size", value)

    def eos_token_id(self, value: int | Sequence[int]) -> Self:
        """End-of-sequence id, or several."""
        return self._set("eos_token_id", value)

    def stop_words_ids(self, value: Sequence[Sequence[int]]) -> Self:
        """Token sequences that end the request."""
        return self._set("stop_words_ids", value)

    def bad_words_ids(self, value: Sequence[Sequence[int]]) -> Self:
        """Token sequences that are never produced."""
        return self._set("bad_words_ids", value)

    def num_beams(self, value: int) -> Self:
        """Beams of a beam search."""
        return self._set("num_beams", value)

    def num_return_sequences(self, value: int) -> Self:
        """Number of samples; each has its queue in the handle's `queues`."""
        return self._set("num_return_sequences", value)

    def logprobs(self, flag: bool = True) -> Self:
        """Report the log-probability of each token."""
        return self._set("logprobs", flag)

    def top_logprobs(self, value: int) -> Self:
        """Number of most likely tokens to report with each token."""
        return self._set("top_logprobs", value)

    def log_probs(self, enable_logprobs: bool, top_logprobs: int = 0) -> Self:
        """Both settings of log-probabilities."""
        return self.logprobs(enable_logprobs).top_logprobs(top_logprobs)

    def uuid(self, value: str) -> Self:
        """Name of the request in the log."""
        return self._set("uuid", value)

    def lora_name(self, value: str) -> Self:
        """Adapter to use."""
        return self._set("lora_name", value)

    def with_mm_info(self, info: MultiMediaInfo) -> Self:
        """Multimedia input."""
        return self._set("mm_info", info)

    def response_format(self, value: Mapping[str, str]) -> Self:
        """Format that the output must have."""
        return self._set("response_format", value)

    def vocab(self, value: Mapping[str, int]) -> Self:
        """Vocabulary for `response_format`."""
        return self._set("vocab", value)

    def vocab_type(self, value: Any) -> Self:
        """Kind of tokenizer for `response_format`."""
        return self._set("vocab_type", value)

    def enable_tensors_from_model_inference(self, flag: bool = True) -> Self:
        """Hand out tensors of the model."""
        return self._set("enable_tensors_from_model_inference", flag)

    # Millstream's own

    def max_new_tokens(self, value: int) -> Self:
        """Most tokens of the output."""
        return self._set("max_new_tokens", value)

    def min_new_tokens(self, value: int) -> Self:
        """Fewest tokens of the output."""
        return self._set("min_new_tokens", value)

    def min_p(self, value: float) -> Self:
        """Keep tokens with at least this share of the most likely one's probability."""
        return self._set("min_p", value)

    def stop(self, value: Sequence[str]) -> Self:
        """Strings that end the request."""
        return self._set("stop", value)

    def stop_token_ids(self, value: Sequence[int]) -> Self:
        """Tokens that end the request."""
        return self._set("stop_token_ids", value)

    def logit_bias(self, value: Mapping[int, float]) -> Self:
        """Added to the logits of tokens."""
        return self._set("logit_bias", value)

    def allowed_token_ids(self, value: Sequence[int]) -> Self:
        """The only tokens that may be produced."""
        return self._set("allowed_token_ids", value)

    def priority(self, value: int) -> Self:
        """Lower numbers are served first under the priority policy."""
        return self._set("priority", value)

    def deadline(self, value: float) -> Self:
        """Seconds after which the request ends."""
        return self._set("deadline", value)

    def queue_timeout(self, value: float) -> Self:
        """Seconds it may wait for its first step."""
        return self._set("queue_timeout", value)

    def _set(self, key: str, value: Any) -> Self:
        self._own[key] = value
        return self
