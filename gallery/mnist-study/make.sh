#!/usr/bin/env bash
# The MNIST study from nothing: trainings, attacks, pictures, scores, verdict. Stopped anywhere, it goes on.
# What is in runs/mnist-study already is not done again.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/mnist-study

vizrobust study --data mnist5k --steps 0,1,2,4,8,16 --seeds 5 --arms fgsm --controls none \
    --hidden 10 --hidden-seeds 3 --out runs/mnist-study
mkdir -p $here/figures
cp runs/mnist-study/report.json runs/mnist-study/prereg.json $here/
cp runs/mnist-study/figures/*.png $here/figures/
cp runs/mnist-study/contact-sheet*.png $here/
vizrobust verify $here/report.json
