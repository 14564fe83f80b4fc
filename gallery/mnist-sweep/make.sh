#!/usr/bin/env bash
# The MNIST sweep from nothing: training, accuracy, pictures. Everything that is in runs/ already is not done again.
# With --ship the trained checkpoints replace the built-in ones.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=gallery/mnist-sweep

train() { vizrobust train --data mnist5k --arch small_cnn --eps 0.3 --epochs 20 "$@"; }
for k in 0 1 2 4 8 16; do train --steps $k --out runs/mnist-k$k; done
train --attack 'FGSM()' --out runs/mnist-fgsm

if [ "${1:-}" = --ship ]; then
    for name in k0 k1 k2 k4 k8 k16 fgsm; do
        vizrobust import runs/mnist-$name --half --out vizrobust/models/builtin/mnist-$name.safetensors
    done
fi

vizrobust attack mnist-k0 mnist-k1 mnist-k2 mnist-k4 mnist-k8 mnist-k16 mnist-fgsm \
    --attack fgsm --attack 'PGD(steps=50)' --curve training-steps --plot $here/accuracy-over-k.png --json > $here/accuracy.jsonl
vizrobust attack mnist-k0 mnist-k1 mnist-k2 mnist-k4 mnist-k8 mnist-k16 --steps 50 --curve steps --plot $here/accuracy-over-steps.png
vizrobust attack mnist-k0 --attack pgd --show $here/adversarial.png
vizrobust attack mnist-k0 mnist-k1 mnist-k8 --images 200 --minimal --attack 'fab(targeted=False)' --plot $here/smallest-eps.png
vizrobust attack mnist-k0 mnist-k8 --images 200 --suite unforeseen --plot $here/unforeseen.png
vizrobust intervene mnist-k0 mnist-k8 --layer conv2 --units all --plot $here/intervene.png
vizrobust certify mnist-k0 mnist-k8 --images 100 --radii 0.25,0.5 --plot $here/certify.png
vizrobust first-order mnist-k0 mnist-k1 mnist-k8 --images 100 --plot $here/first-order.png

vizrobust neurons --out runs/mnist-sweep
vizrobust neurons --recipe fourier --out runs/mnist-sweep-fourier
cp runs/mnist-sweep/contact-sheet.png runs/mnist-sweep/run.json runs/mnist-sweep/rows.jsonl $here/
cp runs/mnist-sweep-fourier/contact-sheet.png $here/contact-sheet-fourier.png
cp runs/mnist-sweep-fourier/run.json $here/run-fourier.json

vizrobust neurons mnist-k0 mnist-k8 --layer conv2 --units 0:6 --exemplars 9 --out runs/mnist-exemplars
cp runs/mnist-exemplars/contact-sheet.png $here/exemplars.png
vizrobust dictionary mnist-k8 --layer relu2 --method nmf --units 8 --out runs/nmf.safetensors
vizrobust neurons mnist-k8 --layer relu2:sae=runs/nmf.safetensors --neuron 3,3 --exemplars 6 --out runs/mnist-dictionary
cp runs/mnist-dictionary/contact-sheet.png $here/dictionary.png
vizrobust invert mnist-k0 mnist-k8 'mnist5k#3' --out runs/mnist-invert
vizrobust caricature mnist-k0 mnist-k8 'mnist5k#3' --layer conv2 --layer linear1 --out runs/mnist-caricature
vizrobust accentuate mnist-k0 mnist-k8 'mnist5k#3' --near conv2 --units 0,2,3,8 --steps 64 --out runs/mnist-accentuate
cp runs/mnist-accentuate/accentuate.png $here/
vizrobust explain mnist-k0 mnist-k8 --images 16 --show 3 --out runs/mnist-explain
cp runs/mnist-explain/explain.png $here/
cp runs/mnist-invert/invert.png runs/mnist-caricature/caricature.png $here/
vizrobust atlas mnist-k8 --layer linear1 --images 1000 --grid 6 --steps 100 --out runs/mnist-atlas
cp runs/mnist-atlas/*.png $here/atlas.png
