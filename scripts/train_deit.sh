#!/usr/bin/env bash
# Distil DeiT on every GPU of this machine, or of several; arguments are those of deit/main.py.
#
#   scripts/train_deit.sh --model tiny --train_student --data-path /data/imagenet
#   NPROC=2 scripts/train_deit.sh ...            two processes (without a GPU the default is one)
#   NNODES=4 RDZV_HOST=node0 scripts/train_deit.sh ...   the same line on each of four machines
module=deit.main source "$(dirname "$0")/launch.sh"
