#!/usr/bin/env bash
# What else excites the class units of photographs clearly or not: other radii, other trainings, masked gradients, and the recipe `fourier`.
# The networks of ../imagenette-study and thirty more, three training seeds of each kind. Wants what ../imagenette-study/make.sh wants.
# Thirty are trained, in an hour of one core with bfloat16 instructions; checkpoints.sha256 lists them. Stopped, it goes on; torchrun shares the work.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/imagenette-controls study=gallery/imagenette-study judges=runs/judges code=gallery/imagenette-study/judges.py

# Pictures by `plain` of the networks K = 0 to 8 had been seen, in the study; no picture of the others, and none by `fourier`.
vizrobust study --data imagenette64 --steps 0,1,2,4,8 --first-seed 4 --seeds 5 --arms fgsm,fast,noise --controls k0-early,k0-shuffled \
    --radius-eps 1/255,2/255,8/255,12/255 --radius-k 1 --masked-eps 32/255 --arm-seeds 3 --eps 4/255 \
    --hidden 0 --image-seeds 4 --images 500 --restarts 1 --masking-images 40 --unforeseen-images 0 --corruption-images 0 \
    --recipe plain --recipe fourier --precision bf16 --networks $study \
    --judge $judges/mobilenet_v1.safetensors::arch=$code:mobilenet_v1 \
    --judge $judges/squeezenet1_1.safetensors::arch=$code:squeezenet1_1 --encoder $judges/resnet50_v2.safetensors::arch=$code:resnet50_v2 \
    --pilot gallery/imagenette-three-seeds/report.json --out runs/imagenette-controls
