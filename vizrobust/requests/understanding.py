"""Requests of the commands that ask what a network depends on, and how surely: explain, intervene, certify, dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vizrobust.requests.request import MARK, OnSplit, ParameterError, Request, Worded, param
from vizrobust.spec import spec


@spec
@dataclass(frozen=True, kw_only=True)
class ExplainRequest(OnSplit):
    """Show which pixels a network's answer depends on, and measure what each such map is worth.

    The explained class is the one that the network predicts. Every map has measures: deletion and insertion against random
    orders, infidelity, sensitivity, dependence on the weights, sparsity. It needs captum: pip install 'vizrobust[explain]'.

    \b
    vizrobust explain mnist-k0 mnist-k8 --images 16
    vizrobust explain mnist-k8 mnist-k8@random --method saliency --method 'LayerCAM(layer="conv2")'
    vizrobust explain torchvision:resnet18 --data imagefolder:photos --images 4
    """

    images: int = param(16, "Explain the first N images of the split.", role="grows", least=1)
    methods: tuple[Any, ...] = param(
        (), "saliency, occlusion or a whole spec (vizrobust list attributions); several allowed [all of them].",
        kind="attribution", role="grows", flag="--method", metavar="SPEC",
    )  # fmt: skip
    show: int = param(4, "Images on the sheet.", role="view", least=1)


@spec
@dataclass(frozen=True, kw_only=True)
class CertifyRequest(OnSplit):
    """Bracket each image: a radius within which no change matters, and the smallest change that an attack finds.

    By smoothing the network is the one that votes over noisy copies of an image; radius and attack are L2. By ibp it is the
    network itself, its bounds are certain, and radius and attack are L-inf. Images that are done are not done again.

    \b
    vizrobust certify mnist-k0 mnist-k8 --images 100 --plot brackets.png
    vizrobust certify mnist-k8 --sigma 0.5 --samples 10000 --radii 0.5,1,1.5
    vizrobust certify mnist-k0 mnist-k8 --method ibp --radii 0.005,0.01
    """

    images: int = param(100, "Certify the first N images of the split.", role="grows", least=1)
    method: str = param("smoothing", "Votes over noise, or interval bounds.", role="grows", choices=("smoothing", "ibp"))
    sigma: float | None = param(None, "Deviation of the noise [0.25]; more allows larger radii.", role="grows")
    samples: int | None = param(None, "Votes for the estimate [1000]; more prove larger radii.", role="grows", least=100)
    alpha: float = param(0.001, "Probability that a certificate is wrong.", role="grows")
    attack: Any = param(
        None, "The attack at the other end of the brackets [DDN(steps=40), FMN(steps=50)], or none.", kind="attack",
        role="grows", metavar="SPEC|none",
    )  # fmt: skip
    radii: tuple[float, ...] = param((), "Radii of the table.", kind="fractions", role="view", metavar="LIST")
    plot: str | None = param(None, "Draw the brackets to a .png, .svg or .pdf.", kind="figure", role="view")

    @property
    def noise(self) -> float:
        return 0.25 if self.sigma is None else self.sigma

    @property
    def votes(self) -> int:
        return 1000 if self.samples is None else self.samples

    def check(self) -> None:
        super().check()
        if self.method == "ibp" and (self.sigma is not None or self.samples is not None):
            raise ParameterError("{sigma} and {samples} are of the smoothed network, {method} ibp has none; leave them out")
        if not self.noise > 0:
            raise ParameterError("{sigma} must be above 0, got %s: without noise nothing is smoothed", self.sigma)
        if not 0 < self.alpha < 0.5:
            raise ParameterError("{alpha} must be between 0 and 0.5, got %s", self.alpha)


@spec
@dataclass(frozen=True, kw_only=True)
class InterveneRequest(Worded, OnSplit):
    """Remove or scale units of a layer, and see what becomes of every class's accuracy and logit.

    Each unit stands beside the units that are nearest to it in mean activity: only what it does more than those is its own.
    With a CLIP network and words a unit also gets a label, if a word predicts on images held out which ones excite it.

    \b
    vizrobust intervene mnist-k0 mnist-k8 --layer conv2 --plot units.png
    vizrobust intervene mnist-k8 --layer linear1 --units 3,7,11 --change mean
    vizrobust intervene mnist-k8 --layer conv2 --units 0:8 --change scale --factor 3
    vizrobust intervene mine.safetensors --layer layer4 --units all --change none --clip ViT-B-32:clip.pt --words words.txt
    """

    layer: str = param(help="Layer by name (vizrobust layers REF).", role="grows")
    units: Any = param(None, "all, 0:16 or 3,7,11; default: all of at most 20, else 0:16.", role="grows", metavar="LIST")
    change: str = param(
        "zero", "Set the unit to 0, to its mean over the images, multiply it, or only say what excites it.", role="grows",
        choices=("zero", "mean", "scale", "none"),
    )  # fmt: skip
    factor: float = param(2.0, "With --change scale: times what.", role="grows")
    controls: int = param(8, "Compare with N units of about the same activity.", role="view", least=1)
    plot: str | None = param(None, "Draw units by classes to a .png, .svg or .pdf.", kind="figure", role="view")

    @property
    def done(self) -> str:
        """What is done to a unit."""
        named = {"zero": "set to 0", "mean": "set to its mean", "scale": f"times {self.factor:g}", "none": "as it is"}
        return named[self.change]

    def check(self) -> None:
        super().check()
        if self.change == "scale" and self.factor == 1:
            raise ParameterError("{factor} 1 changes nothing; give another factor")
        if self.change != "scale" and self.factor != 2.0:
            raise ParameterError("{factor} %s goes with {change} scale, not with %s; leave it out", self.factor, self.change)
        if self.change == "none" and self.plot:
            raise ParameterError("{plot} draws what a change does, and {change} none changes nothing; leave one out")


METHODS = ("pca", "nmf", "topk", "relu")
L1 = 0.3  # of 0.03 to 2, this found most parts of three planted dictionaries


@spec
@dataclass(frozen=True, kw_only=True)
class DictionaryRequest(Request):
    """Fit a dictionary to a layer's activations and write it to a file: LAYER:sae=FILE is then a layer of its units.

    Every command that takes a layer takes such a one. What the dictionary explains, how many units are active at a place and
    how many count in all are measured on test images. A file that is there is not written again: it is measured if this very
    request made it, else refused.

    \b
    vizrobust dictionary mnist-k8 --layer conv2 --out runs/pca.safetensors
    vizrobust dictionary mnist-k8 --layer relu2 --method nmf --units 8 --out runs/nmf.safetensors
    vizrobust dictionary mnist-k8 --layer relu2 --method topk --units 64 --k 4 --out runs/sae.safetensors
    vizrobust neurons mnist-k8 --layer relu2:sae=runs/sae.safetensors --units 0:8
    """

    model: Any = param(argument=True, kind="model", help="A checkpoint: name, file or run folder.")
    layer: str = param(help="Layer by name (vizrobust layers REF).")
    out: str = param(help="The dictionary's file, .safetensors.", kind="file")
    method: str = param(
        "pca", "PCA, NMF, or a sparse autoencoder: its k largest units count, or all positive ones.", choices=METHODS
    )
    units: int = param(16, "How many features.", least=1)
    k: int | None = param(None, "With topk: units active at a place [units / 8].", least=1)
    l1: float | None = param(None, f"With relu: what the sum of the codes costs beside the squared error [{L1}].")
    data: Any = param(None, "Data set (vizrobust list data); default: the checkpoint's own.", kind="data")
    images: int = param(1000, "Fit to at most N training images, at even distances.", least=1)
    places: int = param(16, "Places of each image's map that are looked at.", least=1)
    held_out: int = param(1000, "Measure on at most N test images, at even distances.", role="view", least=2)
    seed: int = param(0, "Seed of all random numbers.")
    plot: str | None = param(None, "Draw units' shares and activity to a .png, .svg or .pdf.", kind="figure", role="view")

    @property
    def penalty(self) -> float:
        """What the sum of the codes costs beside the squared error."""
        return L1 if self.l1 is None else self.l1

    @property
    def largest(self) -> int | None:
        """How many units are active at a place, where that is chosen."""
        return None if self.method != "topk" else self.k or max(1, self.units // 8)

    def check(self) -> None:
        if MARK in self.layer:
            raise ParameterError("{layer} %r is a dictionary's; give the layer itself", self.layer)
        if not self.out.endswith(".safetensors"):
            raise ParameterError("{out} %r must end in .safetensors", self.out)
        if self.k is not None and self.method != "topk":
            raise ParameterError("{k} goes with {method} topk, not with %s; leave it out", self.method)
        if self.l1 is not None and (self.method != "relu" or self.l1 < 0):
            raise ParameterError("{l1} goes with {method} relu and must not be negative, got %g with %s", self.l1, self.method)
        if self.k is not None and self.k > self.units:
            raise ParameterError("{k} %s is more than all {units} %s", self.k, self.units)
