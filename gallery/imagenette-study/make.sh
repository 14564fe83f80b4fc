#!/usr/bin/env bash
# The six built-in networks of the photographs' sweep, asked quickly: attacks, pictures, scores, signs of a verdict.
# Wants the data set imagenette64 (VIZROBUST_DATA names its root).
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/imagenette-study

vizrobust study imagenette-k0 imagenette-k1 imagenette-k2 imagenette-k4 imagenette-k8 imagenette-fgsm \
    --quick --out runs/imagenette-quick
mkdir -p $here/figures
cp runs/imagenette-quick/report.json runs/imagenette-quick/prereg.json $here/
for name in accuracy-over-k clarity-over-k clarity-controls clarity-distance clarity-against-accuracy; do
    cp runs/imagenette-quick/figures/$name.png $here/figures/
done
python gallery/imagenette-study/sheets.py runs/imagenette-quick $here
vizrobust verify $here/report.json
