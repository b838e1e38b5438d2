#!/usr/bin/env python3
"""Perplexity and divergence against numpy on `bantam logits`; llama.cpp's file written and read by code of our own."""
import json, os, resource, signal, struct, subprocess, sys, tempfile, time
sys.path[:0] = ["tests/support"]
import numpy as np
from harness import *

TEXT = "tests/data/alice.txt"
kept = tempfile.TemporaryDirectory()
folder = kept.name
F32 = ["-ctk", "f32", "-ctv", "f32"]
Q8 = ["-ctk", "q8_0", "-ctv", "q8_0"]


def at(name):
    return os.path.join(folder, name)


def bos_model():
    """The built-in model with a BOS wish."""
    data, key = open(TINY, "rb").read(), b"tokenizer.ggml.add_bos_token" + struct.pack("<IB", 7, 0)
    assert data.count(key) == 1
    with open(at("bos.gguf"), "wb") as f:
        f.write(data.replace(key, key[:-1] + b"\x01"))
    return at("bos.gguf")


def tokens_of(model, bos):
    code, out, err = run(["tokenize", "-m", model, "-f", TEXT])
    assert code == 0, err
    return ([bos] if bos is not None else []) + json.loads(out)


def log_probs(model, ids, *args):
    code, out, err = run(["logits", "--format", "f32", "-lv", "1", "-m", model, "--tokens", ",".join(map(str, ids)), *args], binary=True)
    assert code == 0, err
    x = np.frombuffer(out, "<f4").reshape(len(ids), -1).astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def rows(model, ids, ctx, chunks, bos, *args, step=None, first=None):
    """(ln p of the scored positions, the tokens that came) over all chunks."""
    step, first = step or ctx, ctx // 2 if first is None else first
    p, came = [], []
    for i in range(chunks):
        window = ids[i * step:i * step + ctx]
        fed = window if bos is None else [bos] + window[1:]
        p.append(log_probs(model, fed, *args)[first:-1])
        came += window[first + 1:]
    return np.concatenate(p), np.array(came)


def perplexity(*args, program="bantam", env=None):
    code, out, err = run([*(["perplexity"] if program == "bantam" else []), "-lv", "1", "-o", "jsonl", *args], program=program, env=env)
    assert code == 0, (args, err)
    return json.loads(out)


def mean(x):
    return x.mean(), np.sqrt(x.var() / (len(x) - 1))


def close(name, got, want, relative=1e-5, absolute=1e-9):
    check(name, abs(got - want) <= relative * abs(want) + absolute, f"got {got}, expected {want}")


def encode(log_p):
    """Rows of the format, from this file's own reading of it."""
    n = log_p.shape[1]
    low = np.maximum(log_p.min(-1), log_p.max(-1) - 16)
    scale = ((log_p.max(-1) - low) / 65535).astype(np.float32)
    codes = np.zeros((len(log_p), (n + 1) // 2 * 2), "<u2")
    codes[:, :n] = np.clip(np.rint((log_p - low[:, None]) / scale[:, None]), 0, 65535)
    head = np.stack([scale, low.astype(np.float32)], 1).astype("<f4")
    return np.concatenate([head.view("u1"), codes.view("u1")], 1)


def write_base(path, ctx, n_vocab, ids, log_p):
    chunks = len(ids) // ctx
    with open(path, "wb") as f:
        f.write(b"_logits_" + struct.pack("<iii", ctx, n_vocab, chunks) + np.array(ids[:chunks * ctx], "<i4").tobytes() + encode(log_p).tobytes())


def read_base(path):
    data = open(path, "rb").read()
    ctx, n_vocab, chunks = struct.unpack_from("<iii", data, 8)
    ids = np.frombuffer(data, "<i4", ctx * chunks, 20)
    body = np.frombuffer(data, "u1", offset=20 + 4 * len(ids)).reshape(chunks * (ctx - 1 - ctx // 2), -1)
    head = np.ascontiguousarray(body[:, :8]).view("<f4").astype(np.float64)
    codes = np.ascontiguousarray(body[:, 8:]).view("<u2")[:, :n_vocab].astype(np.float64)
    return data[:8], (ctx, n_vocab, chunks), ids, codes * head[:, :1] + head[:, 1:]


def divergence(base, log_q, came):
    kld = np.where(base > -16, np.exp(base) * (base - log_q), 0).sum(-1)
    index = np.arange(len(came))
    nll, nll_base = -log_q[index, came], -base[index, came]
    return kld, nll, nll_base, np.exp(-nll) - np.exp(-nll_base), base.argmax(-1) == log_q.argmax(-1)


def check_text(name, model, ctx, chunks, bos=None, kv=Q8, act="i8"):
    ids = tokens_of(model, bos)
    log_p, came = rows(model, ids, ctx, chunks, bos, *kv, "--act", act)
    nll, error = mean(-log_p[np.arange(len(came)), came])
    got = perplexity("-m", model, "-f", TEXT, "-c", str(ctx), "--chunks", str(chunks), *kv, "--act", act)
    check(f"{name}: scored", got["n_scored"] == len(came) == chunks * (ctx - 1 - ctx // 2), got["n_scored"])
    close(f"{name}: NLL", got["nll"], nll)
    close(f"{name}: NLL error", got["nll_stderr"], error)
    close(f"{name}: PPL", got["ppl"], np.exp(nll), 1e-4)
    close(f"{name}: PPL error", got["ppl_stderr"], np.exp(nll) * error, 1e-4)


def check_divergence(name, got, base, log_q, came):
    kld, nll, nll_base, diff, same = divergence(base, log_q, came)
    for key, values, absolute in (("kld", kld, 2e-6), ("p_diff", diff, 1e-7)):
        value, error = mean(values)
        close(f"{name}: {key}", got[key], value, 1e-4, absolute)
        close(f"{name}: {key} error", got[key + "_stderr"], error, 1e-3, absolute)
        for share, key_of_share in ((0.999, "99.9"), (0.99, "99.0"), (0.5, "50.0"), (0.01, "1.0"), (1, "100.0"), (0, "0.0")):
            close(f"{name}: {key} {key_of_share} %", got[key + "_percentiles"][key_of_share], np.quantile(values, share), 1e-4, 4e-6)
    close(f"{name}: PPL", got["ppl"], np.exp(nll.mean()), 1e-4)
    close(f"{name}: PPL(base)", got["ppl_base"], np.exp(nll_base.mean()), 1e-4)
    close(f"{name}: ratio", got["ppl_ratio"], np.exp((nll - nll_base).mean()), 1e-4)
    close(f"{name}: ratio error", got["ln_ppl_ratio_stderr"], mean(nll - nll_base)[1], 1e-3, 1e-6)
    close(f"{name}: RMS", got["p_diff_rms"], np.sqrt((diff ** 2).mean()), 1e-3, 1e-7)
    # Where the file's codes of the two best are equal, the first counts; float and double may see it otherwise.
    check(f"{name}: same top", abs(got["same_top"] - same.mean()) <= 0.011, (got["same_top"], same.mean()))


def refuses(name, args, code, *words, program="bantam", **more):
    command = [f"{BIN}/{program}", *(["perplexity"] if program == "bantam" else []), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **more)
    lines = [l for l in done.stderr.splitlines() if l.startswith("error:")]
    check(name, done.returncode == code and len(lines) == 1 and all(w in done.stderr for w in words), (done.returncode, done.stderr[-300:]))


def check_refusals(good, ids):
    data = open(good, "rb").read()

    def bad(name, content, *words):
        with open(at("bad"), "wb") as f:
            f.write(content)
        refuses(name, ["--kl-divergence", "--kl-divergence-base", at("bad")], 2, *words)

    for cut in (1, 7, 8, 19, 20, 21, 1000, len(data) // 2, len(data) - 1):
        bad(f"cut at {cut}", data[:cut], "")
    bad("empty", b"", "empty")
    bad("longer", data + b"\0", "expected")
    bad("magic", b"_logitz_" + data[8:], "_logits_")
    bad("foreign", open(TINY, "rb").read(), "_logits_")
    for offset, what in ((8, "context"), (12, "vocabulary"), (16, "chunks")):
        for value in (0, -1, 1 << 30, -1 << 31):
            bad(f"{what} {value}", data[:offset] + struct.pack("<i", value) + data[offset + 4:], what)
    bad("big endian", data[:8] + struct.pack(">iii", *struct.unpack_from("<iii", data, 8)) + data[20:], "expected")
    bad("token", data[:20] + struct.pack("<i", 1024) + data[24:], "token 0 is 1024")
    bad("negative token", data[:24] + struct.pack("<i", -1) + data[28:], "token 1 is -1")
    row = 20 + 4 * len(ids)
    for name, value in (("NaN", float("nan")), ("negative", -1.0), ("large", 1.0)):
        bad(f"scale {name}", data[:row] + struct.pack("<f", value) + data[row + 4:], "damaged at row 0")
        bad(f"lowest {name}", data[:row + 4] + struct.pack("<f", value) + data[row + 8:], "damaged at row 0")
    bad("zero codes", data[:row + 8] + bytes(2048) + data[row + 2056:], "damaged at row 0", "expected 1")
    refuses("other vocabulary", ["-m", SMOLLM2, "--kl-divergence", "--kl-divergence-base", good], 2, "1024", "49152")
    refuses("llama-perplexity's code", ["-m", SMOLLM2, "--kl-divergence", "--kl-divergence-base", good], 1, "49152", program="llama-perplexity")
    refuses("no base", ["--kl-divergence"], 2, "--kl-divergence-base")
    refuses("missing base", ["--kl-divergence", "--kl-divergence-base", at("none")], 2, "cannot open")
    refuses("no text", [], 2, "-f FILE")
    refuses("short text", ["-p", "hello"], 2, "too short", "1024")
    refuses("missing text", ["-f", at("none")], 2, "cannot read")
    refuses("stride and base", ["-f", TEXT, "--ppl-stride", "64", "--kl-divergence-base", at("x")], 2, "--ppl-stride")
    refuses("long stride", ["-f", TEXT, "-c", "64", "--ppl-stride", "200"], 2, "got 200")
    refuses("chunks 0", ["-f", TEXT, "--chunks", "0"], 2, "--chunks")
    refuses("hellaswag", ["-f", TEXT, "--hellaswag"], 2, "not supported")


def check_writing(good):
    before = open(good, "rb").read()
    args = ["-f", TEXT, "-c", "64", "--chunks", "4"]
    refuses("full device", [*args, "--kl-divergence-base", "/dev/full"], 1, "No space left")
    refuses("no folder", [*args, "--kl-divergence-base", at("none/x")], 1, "No such file")
    refuses("a folder", [*args, "--kl-divergence-base", folder], 2, "folder")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
    refuses("file too large", [*args, "--kl-divergence-base", good], 1, "too large", preexec_fn=limit)
    check("old file unharmed", open(good, "rb").read() == before and os.listdir(folder).count("good.unfinished") == 0)
    with open("/dev/full", "w") as full:
        done = subprocess.run([f"{BIN}/bantam", "perplexity", "-lv", "1", "-o", "json", *args], stdout=full, stderr=subprocess.PIPE)
        check("full stdout", done.returncode == 1 and b"stdout" in done.stderr, done)
    # Killed at any moment: the old file, or the whole new one.
    new = [f"{BIN}/bantam", "perplexity", "-lv", "1", "-f", TEXT, "-c", "64", "--chunks", "60", "--kl-divergence-base"]
    subprocess.run([*new, at("whole")], check=True, capture_output=True)
    whole = open(at("whole"), "rb").read()
    for wait in (0, 0.02, 0.1):
        process = subprocess.Popen([*new, good], stdout=subprocess.DEVNULL)
        while process.poll() is None and not os.path.exists(good + ".unfinished"):
            time.sleep(0.001)
        time.sleep(wait)
        process.kill()
        process.wait()
        check(f"killed after {wait} s", open(good, "rb").read() in (before, whole), "neither the old nor the new file")
    subprocess.run([*new, good], check=True, capture_output=True)
    check("a killed writer's rest is taken over", open(good, "rb").read() == whole and not os.path.exists(good + ".unfinished"))


def main():
    check_text("tiny", TINY, 128, 4)
    check_text("tiny, odd context", TINY, 101, 3)
    check_text("BOS", bos_model(), 64, 3, bos=1021)
    check_text("SmolLM2", SMOLLM2, 64, 2)
    for act in ("i16", "f32"):
        check_text(f"--act {act}", TINY, 64, 3, act=act)

    # Strides: chunks of 64 + 16, the last 32 of each scored.
    ids = tokens_of(TINY, None)
    log_p, came = rows(TINY, ids, 80, 5, None, *Q8, step=32, first=47)
    got = perplexity("-f", TEXT, "-c", "64", "--ppl-stride", "32", "--chunks", "5", *Q8)
    close("stride", got["nll"], -log_p[np.arange(len(came)), came].mean())
    check("stride scored", got["n_scored"] == 5 * 32 and got["n_ctx"] == 80, got)

    # Written by bantam: what the format can hold of numpy's figures.
    args = ["-f", TEXT, "-c", "64", "--chunks", "4"]
    perplexity(*args, *F32, "--kl-divergence-base", at("good"))
    magic, shape, file_ids, base = read_base(at("good"))
    log_p, came = rows(TINY, ids, 64, 4, None, *F32)
    check("header", magic == b"_logits_" and shape == (64, 1024, 4) and list(file_ids) == ids[:256], shape)
    held = np.maximum(log_p, log_p.max(-1, keepdims=True) - 16)
    check("rows", np.abs(base - held).max() <= 16 / 65535 / 2 * 1.02, np.abs(base - held).max())
    same = perplexity(*F32, "--kl-divergence", "--kl-divergence-base", at("good"))
    check("same run", abs(same["kld"]) <= 1e-5 and same["kld_max"] <= 2e-4 and same["same_top"] >= 0.98, same)
    base_rows = base
    log_q, _ = rows(TINY, ids, 64, 4, None, *Q8)
    check_divergence("q8_0", perplexity(*Q8, "--kl-divergence", "--kl-divergence-base", at("good")), base_rows, log_q, came)
    part = perplexity(*Q8, "--kl-divergence", "--kl-divergence-base", at("good"), "--chunks", "2")
    check_divergence("two chunks", part, base_rows[:62], log_q[:62], came[:62])

    # Written by numpy, read by bantam.
    write_base(at("numpy"), 64, 1024, ids[:256], log_p)
    _, _, _, base = read_base(at("numpy"))
    for name, program in (("numpy's file", "bantam"), ("numpy's file, llama-perplexity", "llama-perplexity")):
        check_divergence(name, perplexity(*Q8, "--kl-divergence", "--kl-divergence-base", at("numpy"), program=program), base, log_q, came)

    # The text form.
    code, out, err = run([*args, "-lv", "3"], program="llama-perplexity")
    check("text", code == 0 and re.search(r"^\[1\][\d.]+,\[2\][\d.]+,\[3\][\d.]+,\[4\][\d.]+,\nFinal estimate: PPL = [\d.]+ \+/- [\d.]+\n$", out), out)
    check("time left", re.search(r"chunk 1 of 4: [\d.]+ s each, .* left", err), err)
    code, out, err = run([*args, "--ppl-output-type", "1"], program="llama-perplexity")
    check("lines", code == 0 and len(re.findall(r"^ +\d+  [\d.]+  [\d.]+  [\d.]+$", out, re.M)) == 4, out)
    code, out, err = run(["perplexity", *Q8, "--kl-divergence", "--kl-divergence-base", at("good")])
    for line in ("Mean    KLD:", "Maximum KLD:", "99.9%   KLD:", "99.0%   KLD:", "Median  KLD:", "Mean PPL(Q) ", "Mean PPL(base) ",
                 "Mean PPL(Q)/PPL(base) ", "Mean    Δp:", "RMS Δp", "Same top p:"):
        check(f"line '{line}'", code == 0 and out.count("\n" + line) == 1, out)

    check_refusals(at("good"), ids[:256])
    check_writing(at("good"))
    finish()


main()
