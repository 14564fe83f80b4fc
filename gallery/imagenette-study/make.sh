#!/usr/bin/env bash
# The study of attack steps on photographs: eighteen networks from three training seeds, attacked, rendered and judged.
# Wants the data set imagenette64 (VIZROBUST_DATA names its root). About nine hours of one core; stopped, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/imagenette-study

# eps is given: the rule ends at the same and trains four more networks on its way (README, "What it does not claim").
vizrobust study --data imagenette64 --steps 0,1,2,4,8 --seeds 3 --arms fgsm --controls none --hidden 10 --hidden-seeds 3 \
    --images 200 --masking-images 0 --unforeseen-images 100 --corruption-images 100 --eps 4/255 --out runs/imagenette-study
mkdir -p $here/figures
cp runs/imagenette-study/report.json runs/imagenette-study/prereg.json $here/
for name in accuracy-over-k clarity-over-k clarity-over-k-stage4 clarity-controls clarity-controls-stage4 clarity-distance \
    clarity-against-accuracy unforeseen-ratio corruptions-over-k; do
    cp runs/imagenette-study/figures/$name.png $here/figures/
done
python gallery/imagenette-study/sheets.py runs/imagenette-study $here
vizrobust verify $here/report.json
