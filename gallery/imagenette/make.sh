#!/usr/bin/env bash
# Pictures of two networks on natural images, from nothing: IMAGENETTE=folder with train/ and val/ (64 px) bash make.sh
# Training takes the better part of an hour on one core. Everything that is in runs/ already is not done again.
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
pictures $standard $robust --data "$data" --recipe gradient --out runs/im-gradient
for recipe in plain fourier lucid; do
    pictures $standard $robust --data "$data" --recipe $recipe --steps 200 --out runs/im-$recipe
done
pictures $standard $robust --data "$data" --recipe 'maco(crops=2)' --steps 100 --out runs/im-maco
vizrobust gallery runs/im-{gradient,plain,fourier,lucid,maco} --out runs/im-recipes --title "Ten classes, five recipes"
cp runs/im-recipes/contact-sheet.png "$here/recipes.png"
cp runs/im-plain/contact-sheet.png "$here/plain.png"
cp runs/im-plain/run.json "$here/run.json"

# Hidden units: in several faces, both signs, and a whole layer at once (deep dream, from noise).
pictures $robust --data "$data" --layer stage3 --units 0:4 --recipe fourier --diversity 4 --out runs/im-faces
pictures $robust --data "$data" --layer stage4 --units 0:8 --recipe fourier --both --out runs/im-both
pictures $standard $robust --data "$data" --objective 'Energy(layer="stage3")' --recipe fourier --out runs/im-dream
for name in faces both dream; do cp runs/im-$name/contact-sheet.png "$here/$name.png"; done

# Whole layers.
vizrobust spritemap $robust --data "$data" --layer stage4 --recipe fourier --steps 64 --quiet --out runs/im-sprites
cp runs/im-sprites/*.png "$here/spritemap.png"
vizrobust atlas $robust --data "$data" --layer stage4 --images 1000 --grid 6 --recipe fourier --steps 64 --quiet --out runs/im-atlas
cp runs/im-atlas/*.png "$here/atlas.png"

# What shows photographs stays in runs/: the data set is not part of this repository.
pictures $robust --data "$data" --layer stage4 --units 0:6 --recipe fourier --exemplars 9 --out runs/im-exemplars
image=$(find -L "$IMAGENETTE/val/church" -type f | sort | head -1)
vizrobust invert $standard $robust "$image" --data "$data" --quiet --out runs/im-invert
vizrobust caricature $standard $robust "$image" --data "$data" --layer stage3 --layer stage4 --quiet --out runs/im-caricature

# A picture's way, and one of them rendered again.
pictures $robust --data "$data" --units 2,7,8 --recipe fourier --movie --out runs/im-movie
cp "$(find runs/im-movie/images -name '7-s0.gif' | head -1)" "$here/golf-ball.gif"
vizrobust rerender "$(find runs/im-fourier/images -name '7-s0.png' | sort | head -1)"
