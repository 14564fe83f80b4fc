#!/usr/bin/env bash
# The study on CIFAR-10 at 32 px: thirty networks of three training seeds, over K, over the radius, and with masked gradients.
# Wants two files in runs/cifar10, as `npz:` takes them (images N x 32 x 32 x 3 of eight bits, labels, class names):
#   cifar10.npz         x_train: training images 1 to 12,000; x_val: the next 500; x_test: the first 1,000 test images
#   cifar10-judges.npz  x_train: training images 12,501 to 30,500, which no compared network saw; x_val and x_test as above
# Training and validation images here were a JPEG copy (quality 75, mean difference to the originals 5.8/255), test images originals.
# About 90 minutes of one idle core; stopped, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/cifar10-study data=runs/cifar10

vizrobust judge --data npz:$data/cifar10-judges.npz --split train --epochs 5 --out $data/judges
# The third judge, `robust`, collapsed to one class in its five epochs and is left out.
vizrobust study --data npz:$data/cifar10.npz --arch small_cnn --steps 0,1,4,8 --seeds 3 --arms fgsm --controls k0-shuffled \
    --eps 8/255 --masked-eps 32/255 --radius-eps 2/255,4/255,16/255 --epochs 10 --layer linear1 --hidden 16 --hidden-seeds 2 \
    --image-seeds 4 --images 500 --masking-images 60 --unforeseen-images 0 --corruption-images 0 --recipe plain --recipe fourier \
    --judge $data/judges/standard --judge $data/judges/heavy --out $data/study
mkdir -p $here/figures
cp $data/study/report.json $data/study/prereg.json $here/
for name in accuracy-over-k clarity-over-k natural-scale; do
    cp $data/study/figures/$name.png $here/figures/
done
python gallery/imagenette-study/sheets.py $data/study $data baselines
cp $data/contact-sheet-plain.png $data/contact-sheet-fourier.png $here/
(cd $data/study/checkpoints && sha256sum *.safetensors) > $here/checkpoints.sha256
vizrobust attack $data/study/checkpoints/masked-s{0,1,2}.safetensors --eps 32/255 --images 500 --attack fgsm --attack 'pgd(steps=50)'
vizrobust masking $data/study/checkpoints/masked-s{0,1,2}.safetensors --eps 32/255 --images 100
vizrobust verify $here/report.json
