"""Checks of a request against a model, before it is queued."""

from collections.abc import Mapping, Sequence, Sized

from ..errors import InvalidArgument, LimitExceeded
from ..scheduler import SamplingParams


def check_prompts(prompts: object) -> None:
    """Raise InvalidArgument where one prompt stands for a list of them."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise InvalidArgument("prompts", prompts, "a sequence of texts or of token ids")


def check_kind(prompt: object) -> None:
    """Raise InvalidArgument where a prompt is no sequence of token ids."""
    if not isinstance(prompt, Sized):
        raise InvalidArgument("prompt", prompt, "a text or token ids")
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
        allowed = "a text or token ids; apply_chat_template(messages) of the tokenizer makes them of messages"
        raise InvalidArgument("prompt", prompt, allowed)


def check_prompt(prompt: Sequence[int], vocab_size: int) -> list[int]:
    """The prompt as a list.

    Raises:
        InvalidArgument: it is empty, or holds something that is no token id of the vocabulary.
    """
    token_ids = list(prompt)
    if not token_ids:
        raise InvalidArgument("prompt", token_ids, "at least one token")
    # Long prompts are checked on the event loop, where a loop over them would take too long.
    if set(map(type, token_ids)) != {int} or min(token_ids) < 0 or max(token_ids) >= vocab_size:
        wrong = next(token for token in token_ids if type(token) is not int or not 0 <= token < vocab_size)
        raise InvalidArgument("prompt token id", wrong, f"integers from 0 to {vocab_size - 1}")
    return token_ids


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raise InvalidArgument when a parameter names a token outside of the vocabulary."""
    for parameter, token_ids in params.token_ids_by_parameter():
        for token in token_ids:
            if token >= vocab_size:
                raise InvalidArgument(parameter, token, f"token ids from 0 to {vocab_size - 1}")


def check_lengths(
    model: str, prompt_length: int, params: SamplingParams, max_length: int, default: int | None
) -> int:
    """Most tokens the output may have, in a model whose requests hold up to `max_length` tokens.

    `default` bounds an output whose parameters set no bound.

    Raises:
        LimitExceeded: the prompt, or the length asked for, is too long.
    """
    if prompt_length >= max_length:
        raise LimitExceeded(
            f"the prompt has {prompt_length} tokens; {model!r} takes up to {max_length - 1}, one less than "
            f"its max_length {max_length}",
            "prompt",
        )
    if params.max_length is not None and params.max_length > max_length:
        raise LimitExceeded(
            f"max_length is {params.max_length}; {model!r} allows up to {max_length}", "max_length"
        )
    max_output = params.max_output_tokens(prompt_length, max_length, default)
    if max_output < 1:
        raise LimitExceeded(
            f"max_length is {params.max_length}, which leaves no room for output after a prompt of "
            f"{prompt_length} tokens",
            "max_length",
        )
    return max_output
