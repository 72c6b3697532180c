"""Trains pyhelp from nothing in a given time: `python -m millstream.backends.bundled.making.train --out DIR`.

The learning rate follows the elapsed time, so that a run of any length ends annealed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from ..facts import FACTS_FILE, load_facts
from ..phrasing import QUESTIONS, canonical_question
from .corpus import Corpus
from .tokenizer import END_OF_TEXT, IM_END, VOCAB_SIZE, save_tokenizer, token_id, train_tokenizer

__all__ = ["train"]

MAX_POSITIONS = 2048
SEED = 20240229


def model_config(tokenizer: Tokenizer) -> dict[str, object]:
    """The contents of config.json; every matrix row is a multiple of 32 values for block quantisation."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": token_id(tokenizer, IM_END),
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 768,
        "max_position_embeddings": MAX_POSITIONS,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 8,
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "pad_token_id": token_id(tokenizer, END_OF_TEXT),
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_model(model: LlamaForCausalLM, path: Path) -> None:
    """Writes bf16 weights in one move, so that a reader never sees half a file; the tied head is left out."""
    state = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    partial = path.with_suffix(".partial")
    save_file(state, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(path)


def prepare(out: Path, facts_file: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    """Writes tokenizer and configuration into `out` and returns an untrained model."""
    out.mkdir(parents=True, exist_ok=True)
    facts = load_facts(facts_file)
    texts = [fact.answer for fact in facts]
    texts += [question for fact in facts for question in fact.questions or (canonical_question(fact),)]
    texts += [template for family in QUESTIONS.values() for template in family]
    texts += ["system", "user", "assistant"] * 100
    tokenizer = train_tokenizer(texts)
    save_tokenizer(tokenizer, out, MAX_POSITIONS)
    _write_json(out / "config.json", model_config(tokenizer))
    ends = [token_id(tokenizer, IM_END), token_id(tokenizer, END_OF_TEXT)]
    _write_json(
        out / "generation_config.json",
        {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1]},
    )
    torch.manual_seed(SEED)
    # The fused attention's backward pass is slower on a CPU than plain matrix products at these lengths.
    config = LlamaConfig.from_pretrained(out, attn_implementation="eager", dtype=torch.float32)
    return LlamaForCausalLM(config), tokenizer


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the tokens marked in `mask`; both arguments have shape [rows, width]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        # Only marked positions go through the vocabulary: on a CPU the softmax is a large part of the cost.
        logits = model.lm_head(hidden[:, :-1][mask[:, 1:]])
    return cross_entropy(logits.float(), ids[:, 1:][mask[:, 1:]])


def rate_at(progress: float, peak: float) -> float:
    """Learning rate at a fraction of the run: a short rise, then half a cosine down to zero."""
    return peak * min(1.0, progress / 0.02) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: LlamaForCausalLM, peak: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves vectors (norms) as they are."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.97),
        eps=1e-8,
        fused=True,
    )


def train(
    out: Path,
    minutes: float,
    facts_file: Path = FACTS_FILE,
    batch_tokens: int = 4096,
    peak: float = 2e-3,
    compiled: bool = False,
    checkpoint_minutes: float = 5.0,
) -> None:
    """Trains for `minutes` of wall-clock time and leaves a complete model folder in `out`."""
    started = time.monotonic()
    model, tokenizer = prepare(out, facts_file)
    corpus = Corpus(load_facts(facts_file), tokenizer, batch_tokens, SEED)
    optimizer = make_optimizer(model, peak)
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters, {len(corpus.facts)} facts", flush=True)
    steps = tokens = words = 0
    saved = started
    padding = token_id(tokenizer, END_OF_TEXT)
    recent = 0.0
    for ids, mask in corpus.batches():
        now = time.monotonic()
        progress = (now - started) / (60 * minutes)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate_at(progress, peak)
        loss = answer_loss(model, ids, mask)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        tokens += ids.numel()
        words += int(ids.ne(padding).sum())
        recent = loss.item() if steps == 1 else 0.98 * recent + 0.02 * loss.item()
        if steps % 50 == 0:
            rate = tokens / (now - started)
            print(
                f"step {steps} epoch {corpus.epochs} loss {recent:.4f} tokens {tokens} "
                f"tokens/s {rate:.0f} progress {progress:.3f}",
                flush=True,
            )
        if now - saved > 60 * checkpoint_minutes or steps == 50:
            save_model(model, out / "model.safetensors")
            saved = now
    save_model(model, out / "model.safetensors")
    print(
        f"done: {steps} steps, {words} tokens ({tokens} with padding), {corpus.epochs} epochs, "
        f"loss {recent:.4f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled model pyhelp.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model files")
    parser.add_argument("--minutes", type=float, default=65.0, help="wall-clock time to train for")
    parser.add_argument("--facts", type=Path, default=FACTS_FILE, help="file of facts in JSON lines")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens in a batch, padding included")
    parser.add_argument("--peak-rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the model (needs a C++ compiler)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(
        arguments.out,
        arguments.minutes,
        arguments.facts,
        arguments.batch_tokens,
        arguments.peak_rate,
        arguments.compile,
    )


if __name__ == "__main__":
    main()
