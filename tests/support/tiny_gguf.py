"""Writes a Llama of random weights in llama.cpp's file format (GGUF, version 3): 10 MB, no downloads, no packages.

Byte-level SentencePiece vocabulary, 4 layers; its words mean nothing, its KV cache is as real as any: 2,048 bytes a
token at f16 (2 x layers x kv_heads x head_dim x 2).
"""

from __future__ import annotations

import array
import math
import random
import struct
from pathlib import Path
from typing import Final, Literal

LAYERS: Final = 4
WIDTH: Final = 256
HEADS: Final = 4
KV_HEADS: Final = 2
FEED_FORWARD: Final = 512
CONTEXT: Final = 8192
HEAD_DIM: Final = WIDTH // HEADS
KV_BYTES_PER_TOKEN: Final = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2
FIRST_LETTER: Final = 3 + 256 + 1  # the tokens from here on are one printable character each

_ALIGN: Final = 32
_POOL: Final = (
    1 << 16
)  # random numbers made once; each row is a window of them, far quicker than a new one for each weight
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
_UNKNOWN, _CONTROL, _BYTE, _NORMAL = 2, 3, 6, 1  # token types


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _list(key: str, kind: int, values: list[bytes]) -> bytes:
    return _entry(key, _ARRAY, struct.pack("<IQ", kind, len(values)) + b"".join(values))


def _vocabulary() -> list[tuple[str, float, int]]:
    words = [("<unk>", 0.0, _UNKNOWN), ("<s>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL)]
    words += [(f"<0x{value:02X}>", 0.0, _BYTE) for value in range(256)]
    words.append(("\u2581", -1.0, _NORMAL))
    words += [(chr(code), -1.0 - code / 1000, _NORMAL) for code in range(33, 127)]
    return words


def _metadata(words: list[tuple[str, float, int]]) -> list[bytes]:
    def u32(key: str, value: int) -> bytes:
        return _entry(key, _U32, struct.pack("<I", value))

    return [
        _entry("general.architecture", _STRING, _text("llama")),
        _entry("general.name", _STRING, _text("tiny-random")),
        u32("general.file_type", 0),  # all F32
        u32("llama.context_length", CONTEXT),
        u32("llama.embedding_length", WIDTH),
        u32("llama.block_count", LAYERS),
        u32("llama.feed_forward_length", FEED_FORWARD),
        u32("llama.attention.head_count", HEADS),
        u32("llama.attention.head_count_kv", KV_HEADS),
        u32("llama.rope.dimension_count", HEAD_DIM),
        u32("llama.vocab_size", len(words)),
        _entry("llama.attention.layer_norm_rms_epsilon", _F32, struct.pack("<f", 1e-5)),
        _entry("tokenizer.ggml.model", _STRING, _text("llama")),
        _list("tokenizer.ggml.tokens", _STRING, [_text(word) for word, _, _ in words]),
        _list("tokenizer.ggml.scores", _F32, [struct.pack("<f", score) for _, score, _ in words]),
        _list("tokenizer.ggml.token_type", _I32, [struct.pack("<i", kind) for _, _, kind in words]),
        u32("tokenizer.ggml.bos_token_id", 1),
        u32("tokenizer.ggml.eos_token_id", 2),
        u32("tokenizer.ggml.unknown_token_id", 0),
        _entry("tokenizer.ggml.add_bos_token", _BOOL, b"\x01"),
        _entry("tokenizer.ggml.add_space_prefix", _BOOL, b"\x00"),
        _entry(
            "tokenizer.chat_template",
            _STRING,
            _text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "),
        ),
    ]


def _tensors(words: int) -> list[tuple[str, tuple[int, ...], float | Literal["ones"]]]:
    """Name, shape (rows first), and the deviation of its weights."""
    key_value = KV_HEADS * HEAD_DIM
    found: list[tuple[str, tuple[int, ...], float | Literal["ones"]]] = [
        ("token_embd.weight", (words, WIDTH), 1.0),
        ("output_norm.weight", (WIDTH,), "ones"),
        ("output.weight", (words, WIDTH), 1 / math.sqrt(WIDTH)),
    ]
    for layer in range(LAYERS):
        shapes = {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (key_value, WIDTH),
            "attn_v": (key_value, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (FEED_FORWARD, WIDTH),
            "ffn_up": (FEED_FORWARD, WIDTH),
            "ffn_down": (WIDTH, FEED_FORWARD),
        }
        found += [(f"blk.{layer}.{norm}.weight", (WIDTH,), "ones") for norm in ("attn_norm", "ffn_norm")]
        found += [(f"blk.{layer}.{name}.weight", shape, 1 / math.sqrt(shape[1])) for name, shape in shapes.items()]
    return found


def write(path: Path, *, seed: int = 0) -> Path:
    """The same seed gives the same model."""
    rng = random.Random(seed)  # noqa: S311  # weights, not secrets
    pool = [rng.gauss(0.0, 1.0) for _ in range(_POOL)]
    words = _vocabulary()
    entries, tensors = _metadata(words), _tensors(len(words))
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(entries)), *entries]
    offset = 0
    for name, shape, _ in tensors:
        inner_first = tuple(reversed(shape))
        head.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *inner_first, 0, offset))
        offset += -(-math.prod(shape) * 4 // _ALIGN) * _ALIGN
    with path.open("wb") as file:
        file.write(b"".join(head))
        file.write(b"\0" * (-file.tell() % _ALIGN))
        for _, shape, deviation in tensors:
            if deviation == "ones":
                file.write(array.array("f", [1.0] * shape[0]).tobytes())
            else:
                scaled = array.array("f", (value * deviation for value in pool))
                columns = shape[-1]
                for _ in range(shape[0]):
                    begin = rng.randrange(_POOL - columns)
                    file.write(scaled[begin : begin + columns].tobytes())
            file.write(b"\0" * (-file.tell() % _ALIGN))
    return path
