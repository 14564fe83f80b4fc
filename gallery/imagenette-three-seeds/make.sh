#!/usr/bin/env bash
# The study of attack steps on photographs: fifteen networks from three training seeds, attacked, rendered and judged.
# Wants the data set imagenette64 (VIZROBUST_DATA names its root), `pip install -e '.[judges]'`, and in runs/judges three ImageNet
# networks of other families as safetensors of `vizrobust import … --arch judges.py:NAME --classes imagenet`:
#   mobilenet_v1   github.com/google-coral/test_data at 104342d2d3480b3e66203073dac24f4e2dbb4c41, mobilenet_v1_1.0_224_quant_embedding_extractor.tflite
#                  and tools/mobilenet_quant_v1_224_head_layers.tflite, dequantized (Apache-2.0)
#   squeezenet1_1  github.com/BruceDai/test-data at 38659dfbc5f69daddb71b42d10eb4970176ddc54, models/squeezenet1.1_nchw/weights (Apache-2.0)
#   resnet50_v2    the same, models/resnet50v2_nchw/weights without stage 4: the encoder, 1,024 features
# prereg.json has the hash of each. About six hours of one idle core, half of them training; stopped, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/imagenette-three-seeds judges=runs/judges code=gallery/imagenette-study/judges.py

# Training seed 0 is the pilot's: its report told the spread over seeds, and its pictures had been seen.
vizrobust study --data imagenette64 --steps 0,1,2,4,8 --first-seed 1 --seeds 3 --arms none --controls none --eps 4/255 \
    --hidden 50 --hidden-seeds 2 --image-seeds 4 --images 1000 --masking-images 100 --unforeseen-images 0 --corruption-images 100 \
    --recipe plain --judge $judges/mobilenet_v1.safetensors::arch=$code:mobilenet_v1 \
    --judge $judges/squeezenet1_1.safetensors::arch=$code:squeezenet1_1 --encoder $judges/resnet50_v2.safetensors::arch=$code:resnet50_v2 \
    --pilot gallery/imagenette-pilot/report.json --out runs/imagenette-three-seeds
mkdir -p $here/figures
cp runs/imagenette-three-seeds/report.json runs/imagenette-three-seeds/prereg.json $here/
for name in accuracy-over-k clarity-over-k clarity-over-k-stage4 clarity-controls clarity-controls-stage4 clarity-distance \
    clarity-against-accuracy corruptions-over-k natural-scale; do
    cp runs/imagenette-three-seeds/figures/$name.png $here/figures/
done
python gallery/imagenette-study/sheets.py runs/imagenette-three-seeds $here
vizrobust verify $here/report.json
