#!/usr/bin/env bash
# Two networks that a CPU can train, attacked as published ones are. Stopped, it goes on; what was measured is read.
# Wants MNIST and CIFAR-10 under VIZROBUST_DATA; the figures here come from a CIFAR-10 whose training images were a JPEG
# copy (quality 75) and whose test images were the first 1,000 originals, packed as CIFAR10=npz:cifar10-jpeg.npz.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/anchors CIFAR10=${CIFAR10:-cifar10}
net=$here/cifar10_net.py:patched

vizrobust train --data mnist --arch small_cnn --steps 8 --epochs 10 --out runs/mnist-pgd8
vizrobust train --data "$CIFAR10" --arch $net --method 'NFGSM()' --eps 8/255 --epochs 20 --augment crop+flip --ema .999 \
    --lr .004 --watch 500 --checkpoint-every 100 --out runs/cifar10-anchor

attack() { vizrobust attack "${@:2}" --json --quiet --out "runs/anchor-$1"; }
{
    attack mnist-PGD runs/mnist-pgd8 --images 3000 --attack 'PGD(steps=50, restarts=10)'
    attack mnist-standard runs/mnist-pgd8 --images 3000 --attack standard
    attack cifar10-PGD runs/cifar10-anchor --arch $net --images 1000 --attack 'PGD(steps=10)' --attack 'PGD(steps=50)'
    attack cifar10-standard runs/cifar10-anchor --arch $net --images 1000 --attack standard
    # What the distance to published networks is made of: images it was trained on, and test images as JPEG copies.
    attack cifar10-train runs/cifar10-anchor --arch $net --images 1000 --attack 'PGD(steps=10)' --split train
    [ -z "${CIFAR10_JPEG_TEST:-}" ] ||
        attack cifar10-jpeg runs/cifar10-anchor --arch $net --images 1000 --attack 'PGD(steps=10)' --data "$CIFAR10_JPEG_TEST"
} > $here/accuracy.jsonl
