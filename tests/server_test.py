#!/usr/bin/env python3
"""The server as its clients see it: curl-like requests, the real openai package, hostile requests, disconnects, shutdown."""
import concurrent.futures, json, os, signal, socket, subprocess, sys, tempfile, time
sys.path[:0] = ["tests/support"]
from harness import *
import openai

ASK = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
PARIS = "The capital of France is Paris."
server = Server("--metrics", env={"BANTAM_HEADER_TIMEOUT_MS": "700"})


def events(path, body):
    status, headers, data = server.raw("POST", path, json.dumps(body))
    assert status == 200, data
    check("SSE content type " + path, headers["Content-Type"].startswith("text/event-stream"), headers)
    parts = data.decode().split("\n\n")
    check("SSE framing " + path, parts.pop() == "" and all(p.startswith("data: ") for p in parts), data[-100:])
    return [p[6:] for p in parts]


# ---- plain routes
check("health", server.json("GET", "/health") == (200, {"status": "ok"}))
status, models = server.json("GET", "/v1/models")
check("models", status == 200 and models["data"][0]["meta"]["n_ctx"] > 0 and models["object"] == "list", models)
status, props = server.json("GET", "/props")
check("props", status == 200 and props["total_slots"] == 1 and props["default_generation_settings"]["n_ctx"] > 0, props)
status, headers, page = server.raw("GET", "/")
check("page", status == 200 and b"<title>Bantam</title>" in page and "text/html" in headers["Content-Type"])
status, headers, text = server.raw("GET", "/metrics")
check("metrics", status == 200 and b"llamacpp:tokens_predicted_total" in text)
status, slots = server.json("GET", "/slots")
check("slots", status == 200 and slots[0]["is_processing"] is False, slots)
status, tokens = server.json("POST", "/tokenize", {"content": "Hello <|im_end|> é"})
check("tokenize", status == 200 and all(isinstance(t, int) for t in tokens["tokens"]), tokens)
check("detokenize", server.json("POST", "/detokenize", tokens)[1]["content"] == "Hello <|im_end|> é")
check("apply-template", server.json("POST", "/apply-template", ASK)[1]["prompt"].endswith("<|im_start|>assistant\n"))

# ---- completions
status, reply = server.json("POST", "/v1/chat/completions", ASK)
check("capital of France", status == 200 and reply["choices"][0]["message"]["content"] == PARIS, reply)
check("finish_reason", reply["choices"][0]["finish_reason"] == "stop")
usage = reply["usage"]
check("usage", usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and usage["completion_tokens"] > 3, usage)
check("timings", reply["timings"]["predicted_per_second"] > 0 and reply["timings"]["predicted_n"] == usage["completion_tokens"])
status, again = server.json("POST", "/v1/chat/completions", ASK)
check("prefix cache", again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, again["usage"])
check("same answer from the cache", again["choices"][0]["message"]["content"] == PARIS)
chunks = events("/v1/chat/completions", {**ASK, "stream": True, "stream_options": {"include_usage": True}})
check("stream ends with [DONE]", chunks.pop() == "[DONE]")
chunks = [json.loads(c) for c in chunks]
check("stream text", "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == PARIS)
check("stream usage", chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == usage["completion_tokens"])
check("first delta", chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None})
prompt = server.json("POST", "/apply-template", ASK)[1]["prompt"]
status, native = server.json("POST", "/completion", {"prompt": prompt, "temperature": 0, "return_tokens": True, "n_probs": 3})
check("native completion", native["content"] == PARIS and native["stop_type"] == "eos" and native["stop"] is True, native)
check("native probabilities", len(native["completion_probabilities"]) >= 5 and
      len(native["completion_probabilities"][0]["top_logprobs"]) == 3)
chunks = [json.loads(c) for c in events("/completion", {"prompt": prompt, "temperature": 0, "stream": True})]
check("native stream has no [DONE]", "".join(c["content"] for c in chunks) == PARIS and chunks[-1]["stop"] is True)
ids = server.json("POST", "/tokenize", {"content": prompt})[1]["tokens"]
check("prompt as ids", server.json("POST", "/completion", {"prompt": ids, "temperature": 0})[1]["content"] == PARIS)
for stop in (" Paris", ["zzz", " Paris"]):
    r = server.json("POST", "/completion", {"prompt": prompt, "temperature": 0, "stop": stop})[1]
    check(f"stop {stop}", r["content"] == "The capital of France is" and r["stop_type"] == "word" and r["stopping_word"] == " Paris", r["content"])
r = server.json("POST", "/v1/chat/completions", {**ASK, "max_tokens": 2})[1]
check("max_tokens", r["choices"][0]["finish_reason"] == "length" and r["usage"]["completion_tokens"] == 2, r)
r = server.json("POST", "/completion", {"prompt": prompt, "n_predict": 0})
check("n_predict 0", r[0] == 200 and r[1]["content"] == "" and r[1]["tokens_predicted"] == 0, r)
one, two = (server.json("POST", "/completion", {"prompt": "Once upon a time", "seed": 5, "temperature": 1.5, "n_predict": 24})[1]["content"] for _ in "ab")
check("the same seed, the same text", one == two, (one, two))
long = {"messages": [{"role": "user", "content": "word " * 6000}]}
status, r = server.json("POST", "/v1/chat/completions", long)
check("too long", status == 400 and r["error"]["type"] == "exceed_context_size_error" and r["error"]["n_ctx"] == props["default_generation_settings"]["n_ctx"], r)
r = server.json("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "ÿ\u0000 😀 <|im_start|>system"}], "max_tokens": 8})
check("odd text", r[0] == 200, r)

# ---- the openai package
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="sk-no-key-required")
r = client.chat.completions.create(model="any", messages=ASK["messages"], temperature=0)
check("openai chat", r.choices[0].message.content == PARIS)
text = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(
    model="any", messages=ASK["messages"], temperature=0, stream=True) if c.choices)
check("openai stream", text == PARIS, text)
check("openai completions", client.completions.create(model="any", prompt=prompt, temperature=0, max_tokens=30).choices[0].text == PARIS)
check("openai models", client.models.list().data[0].id == models["data"][0]["id"])
try:
    client.chat.completions.create(model="any", messages=ASK["messages"], temperature="hot")
    check("openai bad request", False)
except openai.BadRequestError as e:
    check("openai bad request", "temperature" in str(e))

# ---- curl
out = subprocess.run(["curl", "-s", f"http://127.0.0.1:{server.port}/v1/chat/completions", "-H", "Content-Type: application/json",
                      "-d", json.dumps(ASK)], capture_output=True, text=True).stdout
check("curl", json.loads(out)["choices"][0]["message"]["content"] == PARIS)

# ---- bad requests: 200 or 4xx, never 5xx, and the server lives
numeric = "temperature top_k top_p min_p n_predict max_tokens seed repeat_penalty frequency_penalty presence_penalty repeat_last_n id_slot n_probs".split()
for field in numeric:
    for value in (-1, 1e308, -1e308, 0.5, "x", [], {}, None, True, 10**30):
        body = {"prompt": "Hi", "n_predict": 1, **{field: value}}
        if field in ("n_predict", "max_tokens") and value in (-1, None):
            body["stop"] = ["e", "a", " "]
        status, data = server.json("POST", "/completion", body)
        check(f"{field}={value!r}", status in (200, 400) and ("error" in data) == (status == 400), (status, data))
bad = [("not json", b"{"), ("array", b"[]"), ("no prompt", b"{}"), ("prompt null", b'{"prompt": null}'), ("prompt -1", b'{"prompt": [-1]}'),
       ("prompt huge id", b'{"prompt": [999999999]}'), ("prompt nested", b'{"prompt": [[1]]}'), ("empty prompt", b'{"prompt": ""}'),
       ("stop number", b'{"prompt": "a", "stop": 3}'), ("stream word", b'{"prompt": "a", "stream": "yes"}'),
       ("deep", b'{"prompt": ' + b"[" * 200 + b"]" * 200 + b"}"), ("bias", b'{"prompt": "a", "logit_bias": {"9999999": 1}}'),
       ("bias word", b'{"prompt": "a", "logit_bias": {"x": "y"}}'), ("grammar", b'{"prompt": "a", "grammar": "root ::= 1"}'),
       ("invalid utf-8", b'{"prompt": "\xff\xfe"}'), ("slot 99", b'{"prompt": "a", "id_slot": 99}')]
for name, body in bad:
    status, _, data = server.raw("POST", "/completion", body)
    check("bad: " + name, status == 400 and json.loads(data)["error"]["message"], (status, data))
chat_bad = [{}, {"messages": []}, {"messages": "hi"}, {"messages": [1]}, {"messages": [{"role": "user"}]}, {"messages": [{"content": "x"}]},
            {"messages": [{"role": "wizard", "content": "x"}]}, {**ASK, "tools": [{"type": "function"}]}, {**ASK, "n": 3},
            {**ASK, "response_format": {"type": "json_object"}}, {**ASK, "top_logprobs": 3},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}]
for body in chat_bad:
    status, data = server.json("POST", "/v1/chat/completions", body)
    check("bad chat: " + json.dumps(body)[:60], status in (400, 501), (status, data))
check("404", server.raw("GET", "/nothing")[0] == 404)
check("405", server.raw("GET", "/completion")[0] == 405)
check("501", server.raw("POST", "/v1/embeddings", b"{}")[0] == 501)
check("415", server.raw("POST", "/completion", b"{}", {"Content-Encoding": "gzip"})[0] == 415)
check("foreign Host", server.raw("GET", "/health", headers={"Host": "evil.example"})[0] == 403)
check("OPTIONS", server.raw("OPTIONS", "/v1/chat/completions", headers={"Origin": "http://localhost:3000"})[1].get("Access-Control-Allow-Origin") == "http://localhost:3000")
check("foreign Origin", "Access-Control-Allow-Origin" not in server.raw("GET", "/health", headers={"Origin": "http://evil.example"})[1])


def plain(data, wait=5):
    s = socket.create_connection(("127.0.0.1", server.port), timeout=wait)
    s.sendall(data)
    out = b""
    try:
        while chunk := s.recv(65536):
            out += chunk
    except OSError:
        pass
    return out


check("431", plain(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40000 + b"\r\n\r\n", 1).startswith(b"HTTP/1.1 431"))
check("413", plain(b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", 1).startswith(b"HTTP/1.1 413"))
check("400", plain(b"NONSENSE\r\n\r\n", 1)[:12] in (b"HTTP/1.1 400", b""))
start = time.time()
plain(b"GET / HTTP/1.1\r\nHost: loc", 5)
check("a slow header is cut off", time.time() - start < 4, time.time() - start)
two = plain(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2, 1)
check("pipelining", two.count(b"200 OK") == 2, two)

# ---- clients that leave, clients that queue
s = socket.create_connection(("127.0.0.1", server.port))
body = json.dumps({"prompt": "Once upon a time", "n_predict": 1500, "ignore_eos": True, "stream": True}).encode()
s.sendall(b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
s.recv(2000)
s.close()
deadline = time.time() + 3
while time.time() < deadline and server.json("GET", "/slots")[1][0]["is_processing"]:
    time.sleep(0.05)
check("a client that left frees the slot", not server.json("GET", "/slots")[1][0]["is_processing"])
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(lambda _: server.json("POST", "/v1/chat/completions", ASK)[1]["choices"][0]["message"]["content"], range(24)))
check("24 requests of 8 clients on one slot", answers == [PARIS] * 24, answers)
check("health after all that", server.json("GET", "/health")[0] == 200)
check("SIGTERM ends with 0", server.stop() == 0)
check("prompts are not logged", not any("capital" in line or "Once upon" in line for line in server.lines))

# ---- keys, several slots
server = Server("--api-key", "one,two", "-np", "3", "-c", "3072")
check("no key", server.raw("POST", "/completion", b'{"prompt": "a"}')[0] == 401)
check("wrong key", server.raw("GET", "/props", headers={"Authorization": "Bearer three"})[0] == 401)
for headers in ({"Authorization": "Bearer two"}, {"Authorization": "one"}, {"X-Api-Key": "one"}):
    check(f"key {headers}", server.raw("GET", "/props", headers=headers)[0] == 200)
check("health needs no key", server.raw("GET", "/health")[0] == 200)
key = {"Authorization": "Bearer one"}
check("three slots", len(server.json("GET", "/slots", headers=key)[1]) == 3)
questions = [f"What is the capital of {c}?" for c in ("France", "Denmark", "Italy", "Spain", "Germany", "Norway")]
alone = [server.json("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": q}], "temperature": 0}, key)[1]["choices"][0]["message"]["content"] for q in questions]
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    together = list(pool.map(lambda q: server.json("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": q}], "temperature": 0}, key)[1]["choices"][0]["message"]["content"], questions))
check("company does not change answers", alone == together, (alone, together))
server.process.send_signal(signal.SIGINT)
check("SIGINT ends with 0", server.stop() == 0)

# ---- saved slots: a new server goes on where the old one was
with tempfile.TemporaryDirectory() as folder:
    slot_file = os.path.join(folder, "a b.bin")
    args = ("-np", "2", "-c", "2048", "--slot-save-path", folder)
    server = Server(*args, program="llama-server")
    check("save of an empty slot", server.json("POST", "/slots/0?action=save", {"filename": "e.bin"})[0] == 400)
    first = server.json("POST", "/v1/chat/completions", ASK)[1]["choices"][0]["message"]["content"]
    n_cached = server.json("GET", "/slots")[1][0]["n_cached"]
    status, saved = server.json("POST", "/slots/0?action=save", {"filename": "a b.bin"})
    check("save", status == 200 and saved["n_saved"] == n_cached > 0 and saved["id_slot"] == 0 and saved["filename"] == "a b.bin"
          and saved["n_written"] == os.path.getsize(slot_file) and saved["timings"]["save_ms"] > 0, saved)
    check("a saved slot is the owner's alone", os.stat(slot_file).st_mode & 0o77 == 0)
    server.stop()
    server = Server(*args)
    status, restored = server.json("POST", "/slots/1?action=restore", {"filename": "a b.bin"})
    check("restore", status == 200 and restored["n_restored"] == n_cached and restored["id_slot"] == 1
          and restored["n_read"] == saved["n_written"] and restored["timings"]["restore_ms"] > 0, restored)
    reply = server.json("POST", "/v1/chat/completions", ASK)[1]
    check("the answer after a restore", reply["choices"][0]["message"]["content"] == first == PARIS and reply["timings"]["prompt_n"] == 1, reply)
    for name in ("", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", ".hidden", "x" * 300, "a\u0000b", "a\nb", "x.unfinished"):
        for action in ("save", "restore"):
            status, data = server.json("POST", f"/slots/0?action={action}", {"filename": name})
            check(f"{action} to {name[:20]!r}", status == 400 and "bare file name" in data["error"]["message"], data)
    for path, body in (("/slots/2?action=erase", {}), ("/slots/-1?action=erase", {}), ("/slots/9999999999999?action=erase", {}), ("/slots/x?action=erase", {}),
                       ("/slots/0/1?action=erase", {}), ("/slots/0?action=drop", {}), ("/slots/0", {}), ("/slots/0?action=save", {}),
                       ("/slots/0?action=save", {"filename": 3}), ("/slots/0?action=restore", {"filename": "none.bin"})):
        status, data = server.json("POST", path, body)
        check(f"POST {path} {body}", status == 400 and data["error"]["message"], (status, data))
    data = bytearray(open(slot_file, "rb").read())
    data[len(data) // 2] ^= 4
    open(os.path.join(folder, "damaged.bin"), "wb").write(data)
    held = server.json("GET", "/slots")[1][1]["n_cached"]
    status, data = server.json("POST", "/slots/1?action=restore", {"filename": "damaged.bin"})
    check("a damaged file", status == 400 and "damaged" in data["error"]["message"] and server.json("GET", "/slots")[1][1]["n_cached"] == held > 0, data)
    # Clients see the name that they gave, not where the server keeps its files.
    os.mkdir(os.path.join(folder, "taken.bin"))
    for action, name, expected in (("restore", "none.bin", 400), ("restore", "damaged.bin", 400), ("restore", "taken.bin", 400), ("save", "taken.bin", 500)):
        slot = 0 if action == "restore" else 1
        status, data = server.json("POST", f"/slots/{slot}?action={action}", {"filename": name})
        message = data["error"]["message"]
        check(f"{action} of {name} names the file only", status == expected and f"'{name}'" in message and folder not in message
              and os.path.basename(folder) not in message, (status, data))
    os.rmdir(os.path.join(folder, "taken.bin"))
    deadline = time.time() + 20
    while time.time() < deadline and not any("taken.bin" in line for line in server.lines):
        time.sleep(0.05)
    check("the log has the path of a failure", any(os.path.join(folder, "taken.bin") in line for line in server.lines), server.lines[-5:])
    check("erase", server.json("POST", "/slots/1?action=erase")[1] == {"id_slot": 1, "n_erased": held})
    check("erased", server.json("GET", "/slots")[1][1]["n_cached"] == 0)
    check("GET of one slot", server.raw("GET", "/slots/0")[0] == 405)
    ask = {**ASK, "id_slot": 0}
    server.json("POST", "/v1/chat/completions", ask)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:  # answers on one slot, saves and restores of the other
        text = pool.submit(lambda: [server.json("POST", "/v1/chat/completions", {**ASK, "id_slot": 1})[1]["choices"][0]["message"]["content"] for _ in range(12)])
        moved = pool.submit(lambda: [server.json("POST", f"/slots/0?action={action}", {"filename": "a b.bin"})[0] for _ in range(6) for action in ("save", "restore")])
        both = pool.submit(lambda: [server.json("POST", "/v1/chat/completions", ask)[1]["choices"][0]["message"]["content"] for _ in range(6)])
        check("answers beside saves and restores", text.result() == [PARIS] * 12 and both.result() == [PARIS] * 6 and moved.result() == [200] * 12,
              (text.result(), both.result(), moved.result()))
    server.stop()
    server = Server("-ctk", "q4_0", "--slot-save-path", folder)
    status, data = server.json("POST", "/slots/0?action=restore", {"filename": "a b.bin"})
    check("another K type", status == 400 and "q8_0, expected q4_0" in data["error"]["message"], data)
    server.stop()
    server = Server()
    check("without --slot-save-path", server.json("POST", "/slots/0?action=erase")[0] == 501)
    server.stop()
    server = Server("--slot-save-path", folder, "-c", "768", "--context-shift")
    s = socket.create_connection(("127.0.0.1", server.port))
    body = json.dumps({"prompt": "Once upon a time", "n_predict": -1, "ignore_eos": True, "stream": True}).encode()
    s.sendall(b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    s.recv(2000)
    erase = b"POST /slots/0?action=erase HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
    for one in waiting:
        one.sendall(erase)
    waiting[-1].settimeout(20)
    check("changes of a busy slot queue up to a limit", waiting[-1].recv(2000).startswith((b"HTTP/1.1 503", b"HTTP/1.1 429")))
    for one in waiting:
        one.close()
    for _ in range(60):  # in turns, so that more ask than the limit and all leave
        one = socket.create_connection(("127.0.0.1", server.port))
        one.sendall(erase)
        one.close()
    check("clients that left a busy slot lock nobody out", server.json("GET", "/health")[0] == 200)
    check("nor did they change it", server.json("GET", "/slots")[1][0]["is_processing"])
    status, data = server.json("POST", "/slots/0?action=erase", {"filename": "x" * 70000})
    check("a long body for a slot", status == 400 and "at most 65536" in data["error"]["message"], data)
    s.close()
    server.stop()
    check("nothing else was written", sorted(os.listdir(folder)) == ["a b.bin", "damaged.bin"], os.listdir(folder))
    cache = os.path.join(folder, "chat")
    answers = [run(["chat", "-p", "What is the capital of France?", "--temp", "0", "--prompt-cache", cache]) for _ in range(2)]
    check("chat --prompt-cache", all(code == 0 and out.strip() == PARIS for code, out, _ in answers) and "read from" in answers[1][2]
          and "read from" not in answers[0][2], answers)

# ---- context shift
server = Server("-c", "768", "--context-shift", "--keep", "10")
body = {"prompt": "Once upon a time", "n_predict": 1000, "ignore_eos": True, "temperature": 0}
status, reply = server.json("POST", "/completion", body)
check("an answer beyond the context", status == 200 and reply["tokens_predicted"] == 1000 and reply["truncated"] and reply["stop_type"] == "limit"
      and reply["generation_settings"]["n_keep"] == 10, reply)
deadline = time.time() + 20
while time.time() < deadline and not any("context shift" in line for line in server.lines):
    time.sleep(0.05)
check("shifts are logged", any("context shift, by whole pages" in line and "256 tokens kept (4 asked for)" in line for line in server.lines),
      [line for line in server.lines if "shift" in line])
for field, value in (("n_keep", -2), ("n_keep", "x"), ("n_discard", -1)):
    check(f"bad {field}", server.json("POST", "/completion", {**body, field: value})[0] == 400)
server.stop()
server = Server("-c", "512")
status, reply = server.json("POST", "/completion", body)
check("without shift the context ends the answer", reply["tokens_predicted"] < 512 and reply["truncated"], reply["tokens_predicted"])
server.stop()

# ---- more signals while it ends: never killed by one
codes = []
for i in range(12):
    server = Server()
    server.process.send_signal(signal.SIGINT)
    while server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM if i % 2 else signal.SIGINT)
        time.sleep(0.0002 * i)
    codes.append(server.process.wait(20))
check("signals while it ends", codes == [0] * len(codes), codes)
finish()
