#!/usr/bin/env bash
# The MNIST study from nothing: trainings, attacks, pictures, scores, verdict. Stopped anywhere, it goes on.
# What is in runs/mnist-study already is not done again.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/mnist-study

vizrobust study --data mnist5k --steps 0,1,2,4,8,16 --seeds 5 --hidden 10 --hidden-seeds 3 \
    --out runs/mnist-study
mkdir -p $here/figures
cp runs/mnist-study/report.json runs/mnist-study/prereg.json $here/
for name in accuracy-over-k clarity-over-k clarity-controls clarity-distance clarity-against-accuracy unforeseen-ratio corruptions-over-k; do
    cp runs/mnist-study/figures/$name.png $here/figures/
done
cp runs/mnist-study/contact-sheet.png runs/mnist-study/contact-sheet-fourier.png $here/
python $here/controls.py $here/report.json
vizrobust verify $here/report.json
