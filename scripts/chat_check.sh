#!/bin/sh
# The built-in model's one right answer from a program, given with its emulator as one argument.
# shellcheck disable=SC2086
answer=$($1 chat -p "What is the capital of France?" 2>/dev/null)
echo "$answer"
case $answer in *"The capital of France is Paris."*) exit 0 ;; esac
exit 1
