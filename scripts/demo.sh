#!/usr/bin/env bash
# A CNN teaches a vision transformer on real images, in a few minutes on two CPU cores.
#
# A small RegNetY learns from all 1,297 training digits of scikit-learn. Then DeiT-tiny learns from
# only 100 of them (10 per class), alone and distilled, with three seeds each; the distilled runs
# use the command that ImageNet uses. All are measured on the same 500 held-out digits. The table
# and the picture show whatever comes out.
#
#   scripts/demo.sh            everything into runs/demo/ (a second call only shows the results)
#   SEEDS="0" scripts/demo.sh  one seed
#   scripts/demo.sh --resnet   the ResNet half instead: ResNet-34 teaches ResNet-18, into runs/demo_resnet/
source "$(dirname "$0")/setup.sh"

if [ "${1:-}" = --resnet ]; then
  out=runs/demo_resnet
  resnet() { # configuration, name, further flags
    python resnet/image_classification.py --config "configs/digits/$1.yaml" \
      --output "$out" --name "$2" "${@:3}" 2>&1 | sed -u "s/^/[$2] /"
  }
  echo "== the teacher: ResNet-34 on 1,297 digits"
  resnet resnet_teacher digits_teacher
  for seed in ${SEEDS:-0 1 2}; do
    echo "== the student: ResNet-18 on 100 digits, alone and distilled, seed $seed"
    resnet resnet_alone "alone_seed$seed" --seed "$seed"
    resnet resnet "distilled_seed$seed" --seed "$seed"
  done
  python scripts/report.py "$out"
  exit
fi

out=runs/demo
cores=$(python -c 'import os; print(os.cpu_count())')

echo "== the teacher: RegNetY on 1,297 digits"
python deit/main.py --train_teacher --config configs/digits/teacher.yaml --output "$out"

student() { # method, name, seed
  python deit/main.py --model tiny --train_student --config configs/digits/deit.yaml \
    --distillation "$1" --seed "$3" \
    --output "$out" --name "$2_seed$3" 2>&1 | sed -u "s/^/[$2, seed $3] /"
}

export OMP_NUM_THREADS=$(((cores + 1) / 2))
for seed in ${SEEDS:-0 1 2}; do
  echo "== the student: DeiT-tiny on 100 digits, alone and distilled, seed $seed"
  student none alone "$seed" &
  student srd distilled "$seed"
  wait $!
done

echo "== one of them once more, from its checkpoint"
python deit/main.py --model tiny --config configs/digits/deit.yaml \
  --checkpoint "$out/distilled_seed${seed}/checkpoints/best.pth"

python scripts/report.py "$out"
