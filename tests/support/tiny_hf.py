"""A model directory as Hugging Face's libraries read it, with no weights: for engines that load random ones.

A tokenizer of single bytes, so that a text has as many tokens as bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

LAYERS: Final = 4
KV_HEADS: Final = 2
HEAD_DIM: Final = 64
#: In float32: keys and values of one token.
KV_BYTES_PER_TOKEN: Final = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4

_SPECIAL: Final = ("<unk>", "<s>", "</s>")
_MODEL: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": 320,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CHAT: Final = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def write(directory: Path) -> Path:
    """:returns: the directory, which is made"""
    directory.mkdir(parents=True)
    specials = [
        {
            "id": at,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for at, word in enumerate(_SPECIAL)
    ]
    vocabulary = {word: at for at, word in enumerate((*_SPECIAL, *_alphabet()))}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 8192,
        "chat_template": _CHAT,
    }
    for name, content in (("config", _MODEL), ("tokenizer", tokenizer), ("tokenizer_config", settings)):
        (directory / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return directory


def _alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in its own order of code points."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    moved = [256 + at for at in range(256 - len(plain))]
    return sorted(chr(point) for point in (*plain, *moved))
