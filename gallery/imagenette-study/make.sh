#!/usr/bin/env bash
# The study of attack steps on photographs: twenty-five networks from five training seeds, attacked, rendered and judged.
# Wants the data set imagenette64 (VIZROBUST_DATA names its root), `pip install -e '.[judges,explain]'`, and in runs/judges three ImageNet
# networks of other families as safetensors of `vizrobust import … --arch judges.py:NAME --normalize none --data imagenet --shape 3,64,64`
# with --classes imagenet (the encoder: --classes 1024):
#   mobilenet_v1   github.com/google-coral/test_data at 104342d2d3480b3e66203073dac24f4e2dbb4c41, mobilenet_v1_1.0_224_quant_embedding_extractor.tflite
#                  and tools/mobilenet_quant_v1_224_head_layers.tflite, dequantized (Apache-2.0)
#   squeezenet1_1  github.com/BruceDai/test-data at 38659dfbc5f69daddb71b42d10eb4970176ddc54, models/squeezenet1.1_nchw/weights (Apache-2.0)
#   resnet50_v2    the same, models/resnet50v2_nchw/weights without stage 4: the encoder, 1,024 features
# prereg.json has the hash of each. The networks lie in checkpoints/, half precision; without --networks they are trained again, in 1.7 hours
# of one core with bfloat16 instructions (other processors round otherwise and train others). Stopped, it goes on; torchrun shares the work.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/imagenette-study judges=runs/judges code=gallery/imagenette-study/judges.py

# Pictures of training seeds 0 to 3 had been seen: those of the first pilot (0 to 2), and of the study that is the pilot of this one (1 to 3).
vizrobust study --data imagenette64 --steps 0,1,2,4,8 --first-seed 4 --seeds 5 --arms none --controls none --eps 4/255 \
    --hidden 50 --hidden-seeds 2 --image-seeds 4 --images 500 --restarts 1 --masking-images 40 --unforeseen-images 0 --corruption-images 0 \
    --explain-images 50 --feature-images 1000 --recipe plain --precision bf16 --networks $here \
    --judge $judges/mobilenet_v1.safetensors::arch=$code:mobilenet_v1 \
    --judge $judges/squeezenet1_1.safetensors::arch=$code:squeezenet1_1 --encoder $judges/resnet50_v2.safetensors::arch=$code:resnet50_v2 \
    --pilot gallery/imagenette-three-seeds/report.json --out runs/imagenette-study
mkdir -p $here/figures
cp runs/imagenette-study/report.json runs/imagenette-study/prereg.json $here/
for name in accuracy-over-k clarity-over-k clarity-over-k-stage4 clarity-controls clarity-controls-stage4 clarity-distance \
    clarity-against-accuracy natural-scale secondary-over-k; do
    cp runs/imagenette-study/figures/$name.png $here/figures/
done
python $here/sheets.py runs/imagenette-study $here
vizrobust verify $here/report.json
