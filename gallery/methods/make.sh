#!/usr/bin/env bash
# One network for each way to train, on the embedded digits, and what fifty steps with ten restarts leave of it.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/methods out=runs/methods

train() { vizrobust train --data mnist5k --arch small_cnn --epochs 20 --quiet --out "$out/$1" "${@:2}" > /dev/null; }

train standard --steps 0
train noise --method noise
train fgsm --method fgsm
train fast --method fast
train n-fgsm --method 'NFGSM(noise=1)'
train gradalign --method 'GradAlign(weight=1)'
# Eight weight steps a batch: fewer epochs, about the gradient passes of K = 8.
train free --method 'Free(replays=8)' --epochs 18
train pgd-8 --steps 8
train trades --method 'TRADES(beta=1)' --steps 8
train awp --steps 8 --awp 0.005
train ema-smooth --steps 8 --ema 0.99 --label-smoothing 0.1
train distillation --method 'Distillation(temperature=100)'

for name in standard noise fgsm fast n-fgsm gradalign free pgd-8 trades awp ema-smooth distillation; do
    echo "$out/$name"
done | xargs vizrobust attack --data mnist5k --images 1000 --attack FGSM --attack 'PGD(steps=50, restarts=10)' --json --quiet \
    > $here/accuracy.jsonl
python gallery/methods/table.py $out $here/accuracy.jsonl
