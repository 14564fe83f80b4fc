#!/usr/bin/env bash
# Class units of networks of photographs by both recipes, plain and fourier: five training seeds of each K, eight of K = 0, 1,000 attacked images.
# All twenty-eight lie in ../imagenette-study. Wants what its make.sh wants.
# Stopped, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/imagenette-recipes study=gallery/imagenette-study run=runs/imagenette-recipes
judges=runs/judges code=gallery/imagenette-study/judges.py

# Pictures of training seeds 4 to 8 by plain had been seen, in the study; none by fourier, and none of seeds 9 to 11.
vizrobust study --data imagenette64 --steps 0,1,2,4,8 --first-seed 4 --seeds 5 --standard-seeds 8 --arms none --controls none --eps 4/255 \
    --hidden 0 --image-seeds 4 --images 1000 --restarts 1 --masking-images 40 --unforeseen-images 0 --corruption-images 0 \
    --precision bf16 --networks $study \
    --judge $judges/mobilenet_v1.safetensors::arch=$code:mobilenet_v1 \
    --judge $judges/squeezenet1_1.safetensors::arch=$code:squeezenet1_1 --encoder $judges/resnet50_v2.safetensors::arch=$code:resnet50_v2 \
    --pilot gallery/imagenette-three-seeds/report.json --out $run
mkdir -p $here/figures
cp $run/report.json $run/prereg.json $here/
for name in accuracy-over-k clarity-over-k clarity-controls clarity-distance clarity-against-accuracy; do
    cp $run/figures/$name.png $here/figures/
done
python $here/scale.py $here gallery/imagenette-controls $here/figures/natural-scale.png
python $study/sheets.py $run $here
(cd $run && sha256sum checkpoints/*.safetensors) > $here/checkpoints.sha256
python gallery/contrasts.py $here/report.json
vizrobust verify $here/report.json --networks $study
