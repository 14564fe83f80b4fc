#!/usr/bin/env bash
# Pictures of two networks on natural images, from nothing: IMAGENETTE=folder with train/ and val/ (64 px) bash make.sh
# Training takes about half an hour on one core. Everything that is in runs/ already is not done again.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
data="imagefolder:${IMAGENETTE:?a folder with train/ and val/}"
robust=runs/imagenette-k4 standard=runs/imagenette-k0
pictures() { vizrobust neurons "$@" --quiet; }

for k in 0 4; do
    [ -f runs/imagenette-k$k/checkpoint.safetensors ] || vizrobust train --data "$data" --arch resnet_small --steps $k --eps 4/255 \
        --epochs 9 --optimizer sgd --lr 0.15 --weight-decay 5e-4 --augment crop+flip --out runs/imagenette-k$k
done

# The same ten class units of both networks under each recipe.
for recipe in gradient plain fourier lucid maco; do
    steps=200; [ $recipe = gradient ] && steps=1
    pictures $standard $robust --data "$data" --recipe $recipe --steps $steps --out runs/im-$recipe
done
vizrobust gallery runs/im-{gradient,plain,fourier,lucid,maco} --out runs/im-recipes --title "Ten classes, five recipes"
cp runs/im-recipes/contact-sheet.png "$here/recipes.png"
cp runs/im-plain/run.json "$here/run.json"

# Hidden units: beside natural images, in several faces, both signs.
pictures $robust --data "$data" --layer stage4 --units 0:6 --recipe fourier --exemplars 9 --out runs/im-exemplars
pictures $robust --data "$data" --layer stage3 --units 0:4 --recipe fourier --diversity 4 --batch-size 16 --out runs/im-faces
pictures $robust --data "$data" --layer stage4 --units 0:8 --recipe fourier --both --out runs/im-both
for name in exemplars faces both; do cp runs/im-$name/contact-sheet.png "$here/$name.png"; done

# Whole layers.
vizrobust spritemap $robust --data "$data" --layer stage4 --recipe fourier --steps 64 --quiet --out runs/im-sprites
cp runs/im-sprites/*.png "$here/spritemap.png"
vizrobust atlas $robust --data "$data" --layer stage4 --images 2000 --grid 8 --recipe fourier --steps 64 --quiet --out runs/im-atlas
cp runs/im-atlas/*.png "$here/atlas.png"

# One image: what layers keep of it, more of it, and deep dream from it.
image=$(find "${IMAGENETTE}/val/church" -type f | sort | head -1)
vizrobust invert $standard $robust "$image" --data "$data" --quiet --out runs/im-invert
vizrobust caricature $standard $robust "$image" --data "$data" --layer stage3 --layer stage4 --quiet --out runs/im-caricature
cp runs/im-invert/invert.png runs/im-caricature/caricature.png "$here/"
pictures $standard $robust --data "$data" --objective 'Energy(layer="stage3")' --start "$image" --steps 100 --out runs/im-dream
cp runs/im-dream/contact-sheet.png "$here/dream.png"

# A picture's way, and one of them rendered again.
pictures $robust --data "$data" --units 2,7,8 --recipe fourier --movie --out runs/im-movie
vizrobust rerender "$(find runs/im-fourier/images -name '7-s0.png' | sort | head -1)"
