#!/usr/bin/env bash
# What else makes the pictures of class units of photographs clear or not: the radius, other trainings, masked gradients.
# Nine networks of ../imagenette-study and thirty-nine more, three training seeds of each kind. Wants what ../imagenette-study/make.sh wants.
# Thirty-nine are trained, in 2.7 hours of one core with bfloat16 instructions; checkpoints.sha256 lists them. Stopped, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/imagenette-controls study=gallery/imagenette-study run=runs/imagenette-all
judges=runs/judges code=gallery/imagenette-study/judges.py

# Pictures of K = 0, 1 and 8 had been seen, in the study, and those of a first run of this one: fgsm, noise, k0-early, k0-shuffled, the radii and
# masked gradients. None had been seen of fast, k1-long, k8-eps/4 and k8-eps/2.
vizrobust study --data imagenette64 --steps 0,1,8 --first-seed 4 --seeds 3 \
    --radius-eps 1/255,2/255,8/255,12/255 --radius-k 1 --masked-eps 32/255 --eps 4/255 \
    --hidden 0 --image-seeds 4 --images 1000 --restarts 1 --masking-images 40 --unforeseen-images 0 --corruption-images 0 \
    --recipe plain --precision bf16 --networks $study \
    --judge $judges/mobilenet_v1.safetensors::arch=$code:mobilenet_v1 \
    --judge $judges/squeezenet1_1.safetensors::arch=$code:squeezenet1_1 --encoder $judges/resnet50_v2.safetensors::arch=$code:resnet50_v2 \
    --pilot gallery/imagenette-three-seeds/report.json --out $run
mkdir -p $here/figures
cp $run/report.json $run/prereg.json $here/
for name in accuracy-over-k clarity-over-k natural-scale; do
    cp $run/figures/$name.png $here/figures/
done
python $study/sheets.py $run $here baselines
(cd $run && sha256sum checkpoints/*.safetensors) > $here/checkpoints.sha256
python $here/table.py $here/report.json
vizrobust attack $run/checkpoints/masked-s{4,5,6}.safetensors $run/checkpoints/k0-s{4,5,6}.safetensors --eps 32/255 --images 500 --attack fgsm --attack 'pgd(steps=50)'
vizrobust verify $here/report.json --networks $study
