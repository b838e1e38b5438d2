"""Small Qwen3 files with random weights in every format, several in one file: what a file of one format never asks of the engine."""
import struct, sys
import numpy as np
sys.path[:0] = ["tools"]
from synth_gguf import BOOL, F32T, I32, STR, U32, byte_chars, kv, kv_arr, s

LAYERS, D, FF, HEADS, KV_HEADS, HEAD, VOCAB = 2, 256, 768, 4, 2, 64, 512
# name: GGUF id, values and bytes of a block, offsets of its scale and of its minimum (None: has none), largest code and
# the code of zero, what the scale is multiplied by besides
FORMATS = {
    "q4_0": (2, 32, 18, 0, None, 15, 8, 1), "q4_1": (3, 32, 20, 0, 2, 15, 7.5, 1), "q8_0": (8, 32, 34, 0, None, 255, 0, 1),
    "q4_k": (12, 256, 144, 0, 2, 15, 7.5, 32), "q6_k": (14, 256, 210, 208, None, 63, 32, 64), "q1_0": (41, 128, 18, 0, None, 1, 0.5, 1),
    "q2_0": (42, 64, 18, 0, None, 3, 1, 1), "pq2_0": (142, 128, 34, 0, None, 3, 1, 1),
}
FLOATS = {"f32": (0, "<f4"), "f16": (1, "<f2")}
ROLES = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split()
# Formats of the roles in each layer, then of token_embd and output. Neighbours that share an input differ in the block of activations,
# in their width under --act i16, in the order of rows that their kernels read, or are not rounded at all.
MIXES = {
    "k-quants": ("q4_k q4_k q6_k q4_k q4_k q4_k q6_k", "q6_k q4_k q4_k q6_k q4_k q6_k q4_k", "q4_k", "q6_k"),
    "ternary": ("q1_0 q2_0 pq2_0 q2_0 q1_0 pq2_0 q2_0", "pq2_0 pq2_0 q1_0 pq2_0 q2_0 q1_0 pq2_0", "q2_0", "pq2_0"),
    "blocks of 32": ("q4_0 q8_0 q4_1 q4_1 q4_0 q8_0 q4_0", "q8_0 q8_0 q8_0 q8_0 q4_1 q4_0 q8_0", "q4_0", "q4_1"),
    "floats": ("f16 f32 q8_0 f32 f16 q4_0 f16", "q1_0 f16 f32 f16 f32 f32 q1_0", "f16", "f32"),
}


def weights(rng, name, rows, cols):
    """Bytes of a matrix of about normal size 1 / sqrt(cols)."""
    if name in FLOATS:
        return (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(FLOATS[name][1]).tobytes()
    _, per, size, scale, minimum, largest, zero, beside = FORMATS[name]
    n = rows * cols // per
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    if name in ("q2_0", "pq2_0"):  # -1, 0 and 1: with 2 as well all rows would have one large common part
        codes = rng.integers(0, 3, (n, size - 2, 4), dtype=np.uint8)
        blocks[:, 2:] = (codes << np.array([0, 2, 4, 6], np.uint8)).sum(2).astype(np.uint8)
    d = (0.7 + 0.6 * rng.random(n)) * 4 / (np.sqrt(cols) * max(largest, 2) * beside)
    blocks[:, scale:scale + 2] = d.astype("<f2").view(np.uint8).reshape(n, 2)
    if minimum is not None:  # q4_k subtracts it, times a number as large as the scale's
        sign = zero if name == "q4_k" else -zero
        blocks[:, minimum:minimum + 2] = (d * sign).astype("<f2").view(np.uint8).reshape(n, 2)
    return blocks.tobytes()


def write(path, mix, seed=1):
    rng = np.random.default_rng(seed)
    tensors = []  # name, columns, rows or None, format

    def matrix(name, cols, rows, kind):
        tensors.append((name + ".weight", cols, rows, kind))

    matrix("token_embd", D, VOCAB, MIXES[mix][LAYERS])
    matrix("output", D, VOCAB, MIXES[mix][LAYERS + 1])
    matrix("output_norm", D, None, "f32")
    shapes = dict(zip(ROLES, ((D, HEADS * HEAD), (D, KV_HEADS * HEAD), (D, KV_HEADS * HEAD), (HEADS * HEAD, D), (D, FF), (D, FF), (FF, D))))
    for layer in range(LAYERS):
        for name, n in (("attn_norm", D), ("attn_q_norm", HEAD), ("attn_k_norm", HEAD), ("ffn_norm", D)):
            matrix(f"blk.{layer}.{name}", n, None, "f32")
        for role, kind in zip(ROLES, MIXES[mix][layer].split()):
            matrix(f"blk.{layer}.{role}", *shapes[role], kind)
    chars = byte_chars()
    tokens = chars + [a + b for a in chars[:32] for b in chars[:8]]
    tokens = tokens[:VOCAB - 2] + ["<|endoftext|>", "<|im_end|>"]
    merges = [f"{t[0]} {t[1]}" for t in tokens if len(t) == 2]
    meta = [kv("general.architecture", STR, "qwen3"), kv("general.name", STR, "mix of " + mix), kv("qwen3.block_count", U32, LAYERS),
            kv("qwen3.context_length", U32, 4096), kv("qwen3.embedding_length", U32, D), kv("qwen3.feed_forward_length", U32, FF),
            kv("qwen3.attention.head_count", U32, HEADS), kv("qwen3.attention.head_count_kv", U32, KV_HEADS),
            kv("qwen3.attention.key_length", U32, HEAD), kv("qwen3.attention.value_length", U32, HEAD), kv("qwen3.rope.freq_base", F32T, 1e6),
            kv("qwen3.attention.layer_norm_rms_epsilon", F32T, 1e-6), kv("tokenizer.ggml.model", STR, "gpt2"),
            kv("tokenizer.ggml.pre", STR, "qwen2"), kv_arr("tokenizer.ggml.tokens", STR, tokens),
            kv_arr("tokenizer.ggml.token_type", I32, [1] * (VOCAB - 2) + [3, 3]), kv_arr("tokenizer.ggml.merges", STR, merges),
            kv("tokenizer.ggml.eos_token_id", U32, VOCAB - 1), kv("tokenizer.ggml.add_bos_token", BOOL, False)]
    infos, data = b"", b""
    for name, cols, rows, kind in tensors:
        dims = (cols,) if rows is None else (cols, rows)
        number = FLOATS[kind][0] if kind in FLOATS else FORMATS[kind][0]
        infos += s(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, len(data))
        data += (1 + 0.05 * rng.standard_normal(cols)).astype("<f4").tobytes() if rows is None else weights(rng, kind, rows, cols)
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)) + b"".join(meta) + infos
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32) + data)
