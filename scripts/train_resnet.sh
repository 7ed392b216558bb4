#!/usr/bin/env bash
# Distil ResNet-18 on every GPU of this machine, or of several; arguments are those of resnet/main.py.
#
#   scripts/train_resnet.sh --config configs/res3418.yaml
#   NPROC=2 scripts/train_resnet.sh ...          two processes (without a GPU the default is one)
#   NNODES=4 RDZV_HOST=node0 scripts/train_resnet.sh ...   the same line on each of four machines
module=resnet.main source "$(dirname "$0")/launch.sh"
