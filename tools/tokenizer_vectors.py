#!/usr/bin/env python3
"""Writes tests/data/tokenizer_vectors.json: texts and the ids that the `tokenizers` package (PyPI) gives for the vocabulary
of a GGUF file.  usage: tokenizer_vectors.py TINY.gguf SMOLLM2.gguf OUT.json  (needs numpy and tokenizers)"""
import json, os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reference
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = ["", "Hello world", " leading", "trailing ", "a  b   c", "It's we'll THEY'RE don't I'M", "x = 3.14159 + 2024", "12345678901",
         "line\nline\r\n\n\n  indented\n", "\t\ttabs\t", "emoji 😀👍🏽 é ü ñ", "中文字符和日本語", "العربية עברית", "Ünïcödé ﬀ ① ² ½", "def f(x):\n    return x**2\n",
         "<html>&amp;</html>", "a\u00a0b\u2003c", "!!!???...", "  \n  \n  ", "MiXeD CaSe wOrDs", "e\u0301 combining", "𝔘𝔫𝔦 𝟘𝟙", "snake_case camelCase",
         "http://example.com/?q=1&r=2", "The code of Ben is 7336.", "\u200b zero width", "'s 'S 'tis", "100,000.50 €", "a" * 300, "ab" * 200]


def build(path):
    meta, _ = reference.read_gguf(path)
    vocab = {}
    for i, token in enumerate(meta["tokenizer.ggml.tokens"]):
        vocab.setdefault(token, i)
    merges = [tuple(m.split(" ", 1)) for m in meta["tokenizer.ggml.merges"]]
    merges = [m for m in merges if m[0] in vocab and m[1] in vocab and m[0] + m[1] in vocab]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    if meta["tokenizer.ggml.pre"] == "qwen2":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"),
                                                      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return made


out = {name: [[text, build_.encode(text, add_special_tokens=False).ids] for text in TEXTS]
       for name, build_ in (("tiny", build(sys.argv[1])), ("smollm2", build(sys.argv[2])))}
json.dump(out, open(sys.argv[3], "w"), ensure_ascii=True, indent=0)
print({k: len(v) for k, v in out.items()})
