"""Makes a language model on the spot: the llama architecture, random weights, a vocabulary of made-up words.

What it says means nothing, but all of it is real: llama.cpp loads, tokenizes and samples it like any other model,
and the same prompt and seed give the same text.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

CONTEXT = 16384
LAYERS = 4
WIDTH = 512
HEADS = 8
FEED_FORWARD = 1536

#: Standard deviation of the logits: far enough from uniform that top-p sampling has something to choose from.
_SPREAD = 3.0
#: Of dimension 0 of the residual stream, which no layer writes to.
_CONSTANT = 4.0

_ONSETS = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st"]
_VOWELS = ["a", "e", "i", "o", "u", "é", "ö", "ai"]
_OTHERS = [
    "日本",
    "語",
    "Привет",
    "мир",
    "ελπίδα",
    "שלום",
    "naïve",
    "🚀",
    "👩‍🚀",
    "\n",
    '"',
    "\\",
    "{}",
    "</p>",
    "data:",
]

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def write_model(path: Path, *, seed: int = 1) -> None:
    """Write the model to `path`; the same seed gives the same weights."""
    tokens, types = _vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    # SentencePiece with byte fallback: any prompt can be tokenized, whatever words the vocabulary has.
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0 if kind == gguf.TokenType.BYTE else -float(i) for i, kind in enumerate(types)])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(_CHAT_TEMPLATE)
    for name, tensor in _tensors(np.random.default_rng(seed), types):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary() -> tuple[list[bytes], list[int]]:
    control = [b"<unk>", b"<s>", b"</s>"]
    fallback = [b"<0x%02X>" % byte for byte in range(256)]
    syllables = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    words = [first + second for first in syllables[::3] for second in syllables[1::7]]
    pieces = [f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in words] + _OTHERS
    types = (
        [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
        + [gguf.TokenType.BYTE] * len(fallback)
        + [gguf.TokenType.NORMAL] * len(pieces)
    )
    return [*control, *fallback, *(piece.encode() for piece in pieces)], types


def _tensors(rng: np.random.Generator, types: list[int]) -> list[tuple[str, np.ndarray]]:
    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * (scale / columns**0.5)).astype(np.float32)

    ones = np.ones(WIDTH, dtype=np.float32)
    embedding = rng.standard_normal((len(types), WIDTH)).astype(np.float32)
    embedding[:, 0] = _CONSTANT
    tensors = [("token_embd.weight", embedding)]
    for layer in range(LAYERS):
        attention, down = matrix(WIDTH, WIDTH), matrix(WIDTH, FEED_FORWARD)
        attention[0] = down[0] = 0.0
        tensors += [
            (f"blk.{layer}.attn_norm.weight", ones),
            (f"blk.{layer}.attn_q.weight", matrix(WIDTH, WIDTH)),
            (f"blk.{layer}.attn_k.weight", matrix(WIDTH, WIDTH)),
            (f"blk.{layer}.attn_v.weight", matrix(WIDTH, WIDTH)),
            (f"blk.{layer}.attn_output.weight", attention),
            (f"blk.{layer}.ffn_norm.weight", ones),
            (f"blk.{layer}.ffn_gate.weight", matrix(FEED_FORWARD, WIDTH)),
            (f"blk.{layer}.ffn_up.weight", matrix(FEED_FORWARD, WIDTH)),
            (f"blk.{layer}.ffn_down.weight", down),
        ]
    # Dimension 0 is positive whatever was said, so that a weight on it works as a bias: end of text, control and
    # single bytes are never chosen, and every answer is valid text of exactly `max_tokens` tokens.
    output = matrix(len(types), WIDTH, scale=_SPREAD)
    normal = np.array(types) == gguf.TokenType.NORMAL
    output[:, 0] = 0.0
    output[~normal] = 0.0
    output[~normal, 0] = -100.0
    return [*tensors, ("output_norm.weight", ones), ("output.weight", output)]
