#!/usr/bin/env python3
"""What NUMERICS.md costs, without Bantam's code: a numpy model of its roundings, measured as `bantam perplexity` does.

Emulated: activations (rule 3), int8 queries, page softmax and u8 weights of V (rule 5), rotation (rule 6), encoding
with f16 scales (rule 7). All roundings are the rules' own; the sums between them are float32 in numpy's order, which
the rules fix and this does not repeat: the figure is statistical, not to the bit.

usage: kv_emulate.py MODEL.gguf --tokens FILE [--chunks A-B] [--act i8|f32] [--types LIST] [--out FILE.jsonl]
       kv_emulate.py --summary FILE.jsonl...
TOKENS: ids as `bantam tokenize` prints them. One JSON line for each chunk and type (or K/V pair), KLD against f16.
"""
import argparse, json, math, os, sys, time
import numpy as np
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reference

F = np.float32
TINY = F(2.0 ** -100)
ACT_BLOCK = {41: 128, 42: 64, 142: 128, reference.Q2_0_G128: 128}  # by GGUF type, else 32; float types are not rounded
FLOATS = ("f32", "f16", "bf16")
TYPES = "f16 f32 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl".split()
PAGE, TILE, BLOCK = 256, 32, 32


def half(x):
    return np.clip(x, F(-65504), F(65504)).astype(np.float16).astype(F)


def int8_blocks(x, block):
    """Rule 3: (codes, scale of each block), both float32."""
    b = x.reshape(*x.shape[:-1], -1, block)
    top = np.abs(b).max(-1, keepdims=True)
    d = np.where(top < TINY, F(0), top / F(127))
    q = np.rint(b / np.where(d == 0, F(1), d))
    return np.where(d == 0, F(0), q), d


def rounded(x, block):
    q, d = int8_blocks(x, block)
    return (q * d).reshape(x.shape)


def encode(x, kind):
    """Rule 7: x [..., n] -> (codes, d, m) in blocks of 32."""
    b = x.reshape(*x.shape[:-1], -1, BLOCK)
    low, high = b.min(-1, keepdims=True), b.max(-1, keepdims=True)
    extreme = np.take_along_axis(b, np.abs(b).argmax(-1)[..., None], -1)
    m = np.zeros_like(low)
    if kind == "q8_0":
        d, lo, hi = half(np.abs(extreme) / F(127)), -127, 127
    elif kind in ("q4_0", "q5_0"):
        lo = -8 if kind == "q4_0" else -16
        d, hi = half(extreme / F(lo)), -lo - 1
    elif kind in ("q4_1", "q5_1"):
        lo, hi = 0, 15 if kind == "q4_1" else 31
        d, m = half((high * F(0.5) - low * F(0.5)) / F(hi * 0.5)), half(low)
    else:
        d = half(extreme / F(-127))
    ratio = (b - m) / np.where(d == 0, F(1), d)
    if kind == "iq4_nl":
        table = reference.IQ4_NL.astype(F)
        q = table[np.searchsorted((table[1:] + table[:-1]) / 2, ratio, "left")]
    else:
        q = np.clip(np.rint(ratio), lo, hi)
    return np.where(d == 0, F(0), q), d, m


def as_float(x, kind):
    if kind == "f16":
        return x.astype(np.float16).astype(F)
    if kind == "bf16":
        bits = np.ascontiguousarray(x).view(np.uint32)
        return ((bits + 0x7fff + ((bits >> 16) & 1)) & np.uint32(0xffff0000)).view(F)
    return x


def fwht(x):
    """Rule 6, in blocks of the largest power of two that divides the last dimension."""
    n = x.shape[-1] & -x.shape[-1]
    y = x.reshape(-1, n)
    stride = 1
    while stride < n:
        p = y.reshape(-1, n // (2 * stride), 2, stride)
        y = np.stack([p[:, :, 0] + p[:, :, 1], p[:, :, 0] - p[:, :, 1]], 2)
        stride *= 2
    return (y.reshape(x.shape) * F(1 / math.sqrt(n))).astype(F)


class Emulator:
    def __init__(self, path, act):
        meta, tensors = reference.read_gguf(path)
        self.shape = shape = reference.Model.__new__(reference.Model)
        shape.meta, shape.arch = meta, meta["general.architecture"]
        g = lambda k, d=None: meta.get(f"{shape.arch}.{k}", d)
        self.w = {n: reference.dequantize(*t).astype(F) for n, t in tensors.items()}
        self.blocks = {n: 0 if act == "f32" or t[1] in (0, 1, 30) else ACT_BLOCK.get(t[1], 32) for n, t in tensors.items()}
        self.layers, self.heads = g("block_count"), g("attention.head_count")
        self.kv_heads = g("attention.head_count_kv", self.heads)
        self.head_dim = g("attention.key_length", g("embedding_length") // self.heads)
        self.eps = F(g("attention.layer_norm_rms_epsilon"))
        shape.w, shape.rope_dims = self.w, g("rope.dimension_count", self.head_dim)
        shape.base, shape.scaling = g("rope.freq_base", 10000.0), g("rope.scaling.type", "none")
        shape.factor = g("rope.scaling.factor", 1.0)
        shape.train_ctx = g("rope.scaling.original_context_length", g("context_length"))
        self.interleaved = shape.arch == "llama"

    def product(self, x, name, most=1 << 30):
        block = min(self.blocks[name], most)
        return (rounded(x, block) if block else x) @ self.w[name].T

    def norm(self, x, name):
        r = F(1) / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return x * r * self.w[name]

    def rope(self, x, cos, sin):
        n, y = self.shape.rope_dims, x.copy()
        pick = (slice(0, n, 2), slice(1, n, 2)) if self.interleaved else (slice(0, n // 2), slice(n // 2, n))
        a, b = x[..., pick[0]], x[..., pick[1]]
        y[..., pick[0]], y[..., pick[1]] = a * cos - b * sin, a * sin + b * cos
        return y

    def page(self, q, dq, k, v, first_row, first_key, quant_k, quant_v):
        """One page for rows first_row...: (m, l, acc) of rule 5. q [kv][group][rows][hd]."""
        s = np.matmul(q, k[:, None].swapaxes(-1, -2)) * (dq * F(1 / math.sqrt(self.head_dim)))
        rows, keys = np.arange(q.shape[2])[:, None] + first_row, np.arange(k.shape[1])[None] + first_key
        visible = keys <= rows
        m = np.where(visible, s, F(-np.inf)).max(-1, keepdims=True)
        p = np.where(visible, np.exp(np.minimum(s - m, F(0))), F(0))
        l = p.sum(-1, keepdims=True)
        if not quant_v:
            return m, l, np.matmul(p, v[:, None])
        codes, d, low = v
        acc = np.empty_like(q)
        for b in range(self.head_dim // BLOCK):
            w = (p * np.abs(d[:, :, b, 0])[:, None, None, :]).reshape(*p.shape[:-1], -1, TILE)
            x = w.max(-1, keepdims=True)
            good = x >= TINY
            x = np.where(good, x, F(1))
            u = np.where(good, np.rint(w * (F(255) / x)) * (x / F(255)), F(0)).reshape(p.shape)
            value = codes[:, :, b] * np.where(d[:, :, b] < 0, F(-1), F(1))
            acc[..., b * BLOCK:(b + 1) * BLOCK] = np.matmul(u, value[:, None]) + np.matmul(p, low[:, None, :, b])
        return m, l, acc

    def attend(self, q, k, v, kind_k, kind_v):
        """q [T][heads][hd], k and v [T][kv_heads][hd] after norm and RoPE."""
        n = len(q)
        quant_k, quant_v = kind_k not in FLOATS, kind_v not in FLOATS
        q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
        dq = F(1)
        if quant_k:
            q, k = fwht(q), fwht(k)
            codes, d, low = encode(k, kind_k)
            k = (codes * d + low).reshape(k.shape)
            q, dq = int8_blocks(q, self.head_dim)
            q = q[..., 0, :]
            dq = dq[..., 0].reshape(self.kv_heads, -1, n, 1)
        else:
            k = as_float(k, kind_k)
        v = encode(fwht(v), kind_v) if quant_v else as_float(v, kind_v)
        q = q.reshape(self.kv_heads, -1, n, self.head_dim)
        out = np.empty_like(q)
        for r in range(0, n, PAGE):
            part, state = slice(r, min(r + PAGE, n)), None
            for at in range(0, r + 1, PAGE):
                keys = slice(at, min(at + PAGE, n))
                value = tuple(x[:, keys] for x in v) if quant_v else v[:, keys]
                scale = dq[:, :, part] if quant_k else dq
                new = self.page(q[:, :, part], scale, k[:, keys], value, r, at, quant_k, quant_v)
                if state is not None:
                    m = np.maximum(state[0], new[0])
                    a, b = np.exp(state[0] - m), np.exp(new[0] - m)
                    new = (m, state[1] * a + new[1] * b, state[2] * a + new[2] * b)
                state = new
            out[:, :, part] = state[2] / state[1]
        out = out.reshape(self.heads, n, self.head_dim).transpose(1, 0, 2)
        return fwht(np.ascontiguousarray(out)) if quant_v else out

    def logits(self, ids, kind_k, kind_v, first):
        t, hd = len(ids), self.head_dim
        cos, sin = (x[:, None, :].astype(F) for x in self.shape.rope_tables(t))
        x = self.w["token_embd.weight"][np.asarray(ids)]
        for i in range(self.layers):
            p = lambda name: f"blk.{i}.{name}.weight"
            h = self.norm(x, p("attn_norm"))
            q, k, v = (self.product(h, p(name)).reshape(t, -1, hd) for name in ("attn_q", "attn_k", "attn_v"))
            if p("attn_q_norm") in self.w:
                q, k = self.norm(q, p("attn_q_norm")), self.norm(k, p("attn_k_norm"))
            out = self.attend(self.rope(q, cos, sin), self.rope(k, cos, sin), v, kind_k, kind_v)
            x = x + self.product(out.reshape(t, -1), p("attn_output"))
            h = self.norm(x, p("ffn_norm"))
            gate, up = self.product(h, p("ffn_gate")), self.product(h, p("ffn_up"))
            x = x + self.product(gate / (F(1) + np.exp(-gate)) * up, p("ffn_down"), most=32)
        h = self.norm(x[first:-1], "output_norm.weight")
        return self.product(h, "output.weight" if "output.weight" in self.w else "token_embd.weight")


def log_softmax(x):
    x = x.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def measure(args):
    ids = json.load(open(args.tokens))
    first, last = (int(x) for x in args.chunks.split("-"))
    done = set()
    if os.path.exists(args.out):
        done = {(r["chunk"], r["type"]) for r in map(json.loads, open(args.out))}
    model = Emulator(args.model, args.act)
    kinds = args.types.split(",")
    for chunk in range(first, last + 1):
        window = ids[chunk * args.ctx:(chunk + 1) * args.ctx]
        if len(window) < args.ctx:
            break
        wanted = [kind for kind in kinds if (chunk, kind) not in done]
        if not wanted:
            continue
        half_ctx = args.ctx // 2
        base = log_softmax(model.logits(window, "f16", "f16", half_ctx))
        weight = np.exp(base)
        target = np.asarray(window[half_ctx + 1:])
        for kind in wanted:
            start = time.time()
            k, _, v = kind.partition("/")
            log_q = base if kind == "f16" else log_softmax(model.logits(window, k, v or k, half_ctx))
            kld = (weight * (base - log_q)).sum(-1)
            same = int((base.argmax(-1) == log_q.argmax(-1)).sum())
            nll = -log_q[np.arange(len(target)), target]
            row = {"chunk": chunk, "type": kind, "act": args.act, "n": len(kld), "sum": kld.sum(), "sum2": (kld ** 2).sum(),
                   "max": kld.max(), "same": same, "nll": nll.sum(), "seconds": round(time.time() - start, 1)}
            with open(args.out, "a") as out:
                out.write(json.dumps(row) + "\n")


def summary(paths):
    rows = [json.loads(line) for path in paths for line in open(path)]
    result = {}
    for kind in dict.fromkeys(r["type"] for r in rows):
        mine = [r for r in rows if r["type"] == kind]
        n, total = sum(r["n"] for r in mine), sum(r["sum"] for r in mine)
        mean = total / n
        var = sum(r["sum2"] for r in mine) / n - mean * mean
        result[kind] = {"chunks": len(mine), "mean_kld": mean, "stderr": math.sqrt(max(var, 0) / (n - 1)),
                        "max_kld": max(r["max"] for r in mine), "same_top": sum(r["same"] for r in mine) / n,
                        "ppl": math.exp(sum(r["nll"] for r in mine) / n)}
    return result


def main():
    if sys.argv[1:2] == ["--summary"]:
        for kind, r in summary(sys.argv[2:]).items():
            print(f"{kind:12s} {r['chunks']:3d} chunks  KLD {r['mean_kld']:.6f} ± {r['stderr']:.6f}  max {r['max_kld']:.4f}  "
                  f"same top {100 * r['same_top']:.2f} %  PPL {r['ppl']:.4f}")
        return
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--chunks", default="0-39")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--act", choices=("i8", "f32"), default="i8")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--out", default="build/quality/emulate.jsonl")
    args = parser.parse_args()
    if os.path.dirname(args.out):
        os.makedirs(os.path.dirname(args.out), exist_ok=True)
    measure(args)


if __name__ == "__main__":
    main()
