#!/bin/sh
# The built-in model's one right answer from a program, given with its emulator as one argument; and, given a second program, the same bits
# of the logits from both. An emulator may hang: qemu-user 7.2 did once, both of the program's threads in locks of qemu's own while the first
# one went on asking every 50 ms; a second time one slept in qemu's lock of exclusive execution and the end that was asked for after the
# time was ignored. So an emulated program has a second try after a minute, which is said, and is killed if it does not end.
# shellcheck disable=SC2086
patient() {
  limit=60 try=1 out=$(mktemp)
  while :; do
    timeout -k 5 $limit "$@" >"$out" 2>/dev/null
    code=$?
    [ $code -ne 0 ] || break
    case "$code $try $1" in '124 1 qemu-'* | '137 1 qemu-'*) ;; *) rm -f "$out"; return 1 ;; esac
    echo "not run: first try: no end after $limit s: $*" >&2
    limit=120 try=2
  done
  cat "$out"
  rm -f "$out"
}
answer=$(patient $1 chat -p "What is the capital of France?")
echo "$answer"
case $answer in *"The capital of France is Paris."*) ;; *) exit 1 ;; esac
[ $# -gt 1 ] || exit 0
sum() { patient $1 logits --tokens 5,17,300,42,7,99,1000,2,64,12,512 --format f32 | sha256sum; }
mine=$(sum "$1") theirs=$(sum "$2")
nothing=$(printf '' | sha256sum)
echo "logits: $mine and $theirs"
[ "$mine" = "$theirs" ] && [ "$mine" != "$nothing" ]
