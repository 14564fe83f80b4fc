"""Requests of the commands that make pictures: neurons, spritemap, atlas, invert, caricature, compare, rerender, gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from vizrobust.requests.request import SPLITS, ParameterError, Request, Seeded, Worded, param
from vizrobust.spec import spec

# What the table of units can be sorted by; all but the unit itself with the largest first.
UNIT_ORDERS = ("unit", "score", "transfer", "recognised", "forced_choice", "difference")
# Asking report and features for these would load matplotlib and torch; a test compares them.
SHEET_ORDERS = ("unit", "score")
LAYOUTS = ("tsne", "pca")


@spec
@dataclass(frozen=True, kw_only=True)
class Rendering(Seeded):
    """A request that renders pictures of checkpoints by a recipe."""

    models: tuple[Any, ...] = param(kind="model", role="grows", argument=True, help="Checkpoints: names, files, run folders.")
    recipe: Any = param(
        None,
        "By name (vizrobust list recipes) or a whole spec; default: plain, for images from 128 px on fourier.",
        kind="recipe",
    )
    steps: int | None = param(None, "Render steps; default: the recipe's.")
    size: int | None = param(None, "Picture size; default: the network's input.")
    batch_size: int | None = param(
        None, "Pictures rendered together, recorded; default: as many as there are, at most 16.", least=1
    )
    data: Any = param(None, "Data set (vizrobust list data); default: the checkpoint's own.", kind="data")
    exact: bool = param(
        False, "Networks as they are; else, in fp32, BatchNorm is folded into the layer before it: equal up to rounding, faster."
    )


@spec
@dataclass(frozen=True, kw_only=True)
class UnitPictures(Rendering):
    """A request that renders the units of a layer and scores their clarity."""

    layer: str = param("logits", "Layer by name (vizrobust layers REF).")
    units: Any = param(None, "all, 0:16 or 3,7,11; default: all of at most 20, else 0:16.", role="grows", metavar="LIST")
    seeds: int = param(1, "Pictures of each unit, from different noise.", role="grows", least=1)
    judge: tuple[str, ...] = param(
        (), "Outside judge of clarity, several allowed; default: the data set's own.", role="view", flag="--judge", metavar="REF"
    )
    judge_independent: bool = param(
        False, "State that the judges saw none of the compared checkpoints' training images.", role="view"
    )
    query_images: int = param(1000, "Clarity asks about the first N held-out images.", role="view", cli=False, least=1)


@spec
@dataclass(frozen=True, kw_only=True)
class NeuronsRequest(UnitPictures):
    """Render what excites a network's units; two or more checkpoints end with their difference in clarity.

    Without a REF: the class units of the built-in sweep on photographs, K = 0 to 8 attack steps, by 100 steps of the recipe
    plain. What is in the run folder already is not rendered again.

    \b
    vizrobust neurons
    vizrobust neurons mnist-k0 mnist-k8 --layer conv2 --units 0:16 --out runs/conv2
    vizrobust neurons mnist-k8 --layer conv2 --units 3,7 --exemplars 9
    vizrobust neurons torchvision:resnet18 --layer layer3 --units 3,7,11 --recipe fourier
    """

    models: tuple[Any, ...] = param((), kind="model", role="grows", argument=True, help="Checkpoints; default: a built-in sweep.")
    neuron: tuple[int, int] | None = param(
        None, "One position of the layer's map instead of the mean over all.", kind="position", metavar="Y,X"
    )
    negative: bool = param(False, "Render what the units dislike.", role="grows")
    both: bool = param(False, "Render what the units like and what they dislike.", role="grows")
    diversity: int = param(1, "N pictures of each unit that differ in style.", metavar="N", least=1)
    objective: Any = param(None, "A whole objective in place of --layer and --neuron.", kind="objective")
    start: str | None = param(None, "Begin from an image, a file or DATA#index, instead of noise.", metavar="IMAGE")
    sort: str = param(
        "unit",
        "Order of the units in the table of scores; difference: of transfer (or the AUC), last REF minus first.",
        role="view", choices=UNIT_ORDERS,
    )  # fmt: skip
    movie: bool = param(False, "A GIF of each picture's optimization beside it.")
    frames: int = param(60, "Most pictures of a GIF.", cli=False, least=2)
    exemplars: int | None = param(
        None, "Natural images too: N that excite a unit most, N least.", role="view", metavar="N", least=1
    )
    exemplar_images: int = param(10_000, "Exemplars are chosen from so many validation images.", role="view", cli=False, least=1)


@spec
@dataclass(frozen=True, kw_only=True)
class CompareRequest(UnitPictures):
    """Put checkpoints side by side: training recipe, accuracy, feature images and two measures of their clarity.

    All are attacked on the same images, and each is tested against the first (McNemar). Clarity comes with its
    references: the same questions asked with natural images and with the pictures of a randomly initialised network.

    \b
    vizrobust compare mnist-k0 mnist-k8
    vizrobust compare mnist-k0 mnist-k8 --layer conv2 --seeds 2 --attack standard --images 200
    """

    recipe: Any = param("plain", "By name (vizrobust list recipes) or a whole spec.", kind="recipe")
    seeds: int = param(3, "Pictures of each unit, from different noise.", role="grows", least=1)
    attack: Any = param("PGD(steps=50)", "Attack to compare under.", kind="attack", role="view")
    eps: float | None = param(
        None, "Radius of the attack's ball in [0, 1] pixels; default: the data set's.", kind="fraction", role="view"
    )
    norm: str | None = param(None, "Norm of the attack's ball: Linf, L2 or L1.", role="view", metavar="NAME")
    images: int = param(1000, "Attack the first N test images; 0 leaves this out.", role="view", least=0)

    def check(self) -> None:
        if (count := len({one if isinstance(one, str) else id(one) for one in self.models})) < 2:
            raise ParameterError("{models}: compare needs two or more different checkpoints, got %s", count)


@spec
@dataclass(frozen=True, kw_only=True)
class MicroscopeRequest(Worded, UnitPictures):
    """Write a site of static pages about the units of checkpoints: a page for each layer, each unit and each class.

    A unit's page has its picture, what it dislikes, the natural images that excite it and where, its activations, the
    classes it argues for, and the same and the matching unit in the other checkpoints. Nothing is fetched: the pages open
    from disk and from any web host. With the same --out, more layers and checkpoints are added to a site, and what is
    there is not rendered again; stopped with Ctrl-C it goes on where it was.

    \b
    vizrobust microscope mnist-k0 mnist-k8 --layers conv2,logits --out site
    vizrobust microscope imagenette-k0 imagenette-k8 --layers stage4 --units 0:32 --steps 128
    vizrobust microscope mine.safetensors --layers layer4 --clip ViT-B-32:clip.pt --words words.txt
    """

    layers: tuple[str, ...] = param(
        (), "Layers, with commas between them; default: logits.", kind="names", role="grows", metavar="NAMES"
    )
    layer: str = param("logits", cli=False, role="view")
    units: Any = param("all", "all, 0:16 or 3,7,11.", role="grows", metavar="LIST")
    seeds: int = param(2, "Pictures of each unit, from different noise.", role="grows", least=1)
    likes: bool = param(False, "Only what units like, without what they dislike and hidden units' clarity.", role="grows")
    exemplars: int = param(9, "Natural images of each unit: N that excite it most, N least.", role="view", metavar="N", least=1)
    query_images: int = param(500, "Clarity asks about the first N held-out images.", role="view", cli=False, least=1)
    exemplar_images: int = param(2000, "Natural images are chosen from so many validation images.", role="view", least=3)
    adversarial: int = param(4, "Adversarial examples of each class.", role="view", metavar="N", least=0)
    masking: int = param(0, "Diagnose gradients too, on N test images, for the cards.", role="view", metavar="N", least=0)


@spec
@dataclass(frozen=True, kw_only=True)
class SpritemapRequest(Rendering):
    """Render all units of a layer and put them on one sheet; each REF has a sheet of its own.

    Stopped with Ctrl-C it goes on where it was when it is started again. Memory is that of one batch of pictures,
    however many units there are.

    \b
    vizrobust spritemap mnist-k8 --layer conv2
    vizrobust spritemap mnist-k0 mnist-k8 --layer linear1 --sort score
    vizrobust spritemap torchvision:resnet18 --layer layer4 --size 64 --recipe fourier --steps 64
    """

    layer: str = param("logits", "Layer by name (vizrobust layers REF).")
    units: Any = param("all", "all, 0:16 or 3,7,11.", role="grows", metavar="LIST")
    negative: bool = param(False, "Render what the units dislike.", role="grows")
    sort: str = param("unit", "Order on the sheet.", role="view", choices=SHEET_ORDERS)
    columns: int | None = param(None, "Tiles in a row; default: a near-square sheet.", role="view", least=1)


@spec
@dataclass(frozen=True, kw_only=True)
class AtlasRequest(Rendering):
    """Draw an activation atlas: the activations of many images in a layer, laid out, averaged cell by cell, rendered.

    Each REF has an atlas of its own, of the same images seen at the same places; with --aligned all share one layout, so a
    cell averages the same images in each. A run that was stopped goes on where it was; its activations and layout are not
    computed again.

    \b
    vizrobust atlas mnist-k8 --layer linear1
    vizrobust atlas mnist-k0 mnist-k8 --layer linear1 --aligned
    vizrobust atlas mnist-k0 mnist-k8 --layer conv2 --grid 6
    """

    layer: str = param(help="Layer by name (vizrobust layers REF).")
    split: str = param("train", "Which images of the data set.", choices=SPLITS)
    images: int | None = param(None, "How many, the same share of each class; default: at most 2,000.", metavar="N")
    grid: int = param(8, "Cells along each side.")
    min_activations: int = param(5, "Cells with fewer activations stay empty.", aliases=("--fewest",))
    layout: str = param("tsne", "How activations are laid out.", choices=LAYOUTS)
    aligned: bool = param(False, "One layout for all REFs; their sheets stand side by side.")
    whiten: bool = param(False, "Multiply means with the inverse of the activations' second moments.")

    def check(self) -> None:
        super().check()
        if self.aligned and len(self.models) < 2:
            raise ParameterError("{aligned} lays out two or more checkpoints together, got %s", len(self.models))


@spec
@dataclass(frozen=True, kw_only=True)
class Reconstruction(Rendering):
    """A request that makes pictures after an image, one for each layer."""

    models: tuple[Any, ...] = param(kind="model", role="grows", argument=True, help="Checkpoints: names, files, run folders.")
    image: str = param(argument=True, help="A file, or DATA#index, a test image.")
    layers: tuple[str, ...] = param(
        (), "Several allowed; default: up to six of them.", role="grows", flag="--layer", metavar="NAME"
    )
    seeds: int = param(1, "Pictures of each layer, from different noise.", role="grows", least=1)
    batch_size: int = param(1, "Seeds rendered at once; recorded, as it is part of it.", least=1)

    @property
    def begins_there(self) -> bool:
        """Whether pictures begin from the image."""
        return bool(getattr(self, "start", False))


@spec
@dataclass(frozen=True, kw_only=True)
class InvertRequest(Reconstruction):
    """Invert layers: from noise, find an image whose activations in a layer are those of IMAGE.

    What the picture shares with IMAGE the layer has preserved; where the two differ, the layer cannot tell. IMAGE is a
    file, or DATA#index, a test image. The error is the squared distance of the activations over their own square, 0 to 1
    and beyond; that of a plain grey image stands beside it. PSNR and SSIM compare pixels.

    \b
    vizrobust invert mnist-k0 mnist-k8 mnist5k#3
    vizrobust invert mnist-k8 seven.png --layer conv2 --layer linear1 --seeds 3
    """

    recipe: Any = param("direct", "By name (vizrobust list recipes) or a whole spec.", kind="recipe")
    # Of 0.003 to 0.3, this gave the largest mean SSIM over four networks of digits and CIFAR-10, two of them robust.
    smooth: float = param(0.1, "Weight of the total variation that is subtracted.", least=0)


@spec
@dataclass(frozen=True, kw_only=True)
class CaricatureRequest(Reconstruction):
    """Draw caricatures of IMAGE: pictures to which a layer answers as it does to IMAGE, only more so.

    IMAGE is a file, or DATA#index, a test image. The relative projection is that of the picture's activations on those of
    IMAGE, 1 for IMAGE itself; the cosine is that of the angle between them.

    \b
    vizrobust caricature mnist-k0 mnist-k8 mnist5k#3
    vizrobust caricature mnist-k8 seven.png --layer conv2 --start --recipe plain
    """

    recipe: Any = param("fourier", "By name (vizrobust list recipes) or a whole spec.", kind="recipe")
    power: float = param(1.0, "How much direction counts beside strength: dot · cosine^power.")
    start: bool = param(False, "Begin from IMAGE itself instead of noise.")


@spec
@dataclass(frozen=True, kw_only=True)
class AccentuateRequest(Rendering):
    """Change IMAGE so that a unit is excited more, while a layer's answer to IMAGE is kept.

    What appears in IMAGE is what the unit looks for there: with robust networks a thing, with others noise. IMAGE is a file,
    or DATA#index, a test image. The error is how far the held layer's answer has moved.

    \b
    vizrobust accentuate mnist-k0 mnist-k8 mnist5k#3 --near conv2
    vizrobust accentuate imagenette-k0 imagenette-k8 cat.jpg --units 3,4 --near stage2 --hold 3
    """

    models: tuple[Any, ...] = param(kind="model", role="grows", argument=True, help="Checkpoints: names, files, run folders.")
    image: str = param(argument=True, help="A file, or DATA#index, a test image.")
    recipe: Any = param("fourier", "By name (vizrobust list recipes) or a whole spec.", kind="recipe")
    layer: str = param("logits", "Layer of the units (vizrobust layers REF).")
    units: Any = param(None, "all, 0:16 or 3,7,11; default: all of at most 20, else 0:16.", role="grows", metavar="LIST")
    near: str = param(help="Layer whose answer to IMAGE is kept.")
    hold: float = param(1.0, "How much the change of that answer counts; 0: not at all.", least=0)
    seeds: int = param(1, "Pictures of each unit, with different transforms.", role="grows", least=1)
    batch_size: int = param(1, "Seeds rendered at once; recorded, as it is part of it.", least=1)

    begins_there = True


@spec
@dataclass(frozen=True, kw_only=True)
class RerenderRequest(Request):
    """Render a picture again from what its PNG says, and compare the pixels; exit 1 where they differ.

    FILE is a picture out of a run folder's images, wherever it is now. The same weights are needed, and the images and
    other files that it was made with; REF names the checkpoint where it has moved. Batch size, precision and number of
    threads are those of then, and so is the device where --device is auto: on the same machine and versions the pixels
    are the same.

    \b
    vizrobust rerender runs/neurons-0123abcd/images/mnist-k8-0123abcd/plain/logits/3-s0.png
    vizrobust rerender three.png models/mine.safetensors --arch nets.py:Net --out again.png
    """

    file: str = param(argument=True, metavar="FILE.png", help="A picture of a run.")
    model: Any = param(None, argument=True, kind="model", help="The checkpoint; default: the one that the picture names.")
    save: str | None = param(
        None, "Save the new picture; default: only compare.", flag="--out", kind="file", role="view", metavar="FILE"
    )

    def check(self) -> None:
        if self.save is not None and PurePath(self.save).suffix.lower() != ".png":
            raise ParameterError("{save} %r must end in .png", self.save)


@spec
@dataclass(frozen=True, kw_only=True)
class GalleryRequest(Request):
    """Join the pictures of finished runs into one page and one contact sheet.

    \b
    vizrobust gallery runs/conv1 runs/conv2 --out runs/both
    """

    runs: tuple[str, ...] = param(argument=True, metavar="RUN", help="Folders that neurons or compare wrote.")
    folder: str = param(help="Folder of the gallery.", flag="--out", kind="folder", role="view", metavar="DIR")
    title: str = param("Feature images", "Title of the page.", role="view")
