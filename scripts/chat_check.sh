#!/bin/sh
# The built-in model's one right answer from a program, given with its emulator as one argument; and, given a second program, the same bits
# of the logits from both.
# shellcheck disable=SC2086
answer=$($1 chat -p "What is the capital of France?" 2>/dev/null)
echo "$answer"
case $answer in *"The capital of France is Paris."*) ;; *) exit 1 ;; esac
[ $# -gt 1 ] || exit 0
sum() { $1 logits --tokens 5,17,300,42,7,99,1000,2,64,12,512 --format f32 2>/dev/null | sha256sum; }
mine=$(sum "$1") theirs=$(sum "$2")
nothing=$(printf '' | sha256sum)
echo "logits: $mine and $theirs"
[ "$mine" = "$theirs" ] && [ "$mine" != "$nothing" ]
