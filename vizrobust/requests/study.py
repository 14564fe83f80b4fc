"""Requests of the study and of what describes: study, verify, trials, layers, list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vizrobust.requests.request import PRECISIONS, ParameterError, Request, Seeded, param
from vizrobust.spec import spec


@spec
@dataclass(frozen=True, kw_only=True)
class StudyRequest(Request):
    """Train a sweep over attack steps, or take checkpoints, and answer with a report.

    Preregisters what it will do, attacks every network, renders the same units for all, lets outside judges score
    the pictures, tests three contrasts over training seeds and writes one page. It can be stopped at any moment; the
    same command goes on. torchrun shares the work among processes; the report is the same.

    \b
    vizrobust study --data mnist5k --quick --out runs/quick
    vizrobust study --data mnist5k --steps 0,1,2,4,8,16 --seeds 5 --out runs/study
    vizrobust study mnist-k0 mnist-k1 mnist-k8 --quick --out runs/builtin
    """

    # None is what the data set's own protocol says: the plan that `commands.study.resolve` makes has no None for it.
    models: tuple[Any, ...] = param((), "Checkpoints to compare, where none is trained.", kind="model", argument=True)
    data: str | None = param(None, "Data set (vizrobust list data); default: the checkpoint's own.", kind="data")
    steps: tuple[int, ...] | None = param(
        None, "Attack steps K to train, such as 0,1,2,4,8,16 (the default).", kind="numbers", metavar="LIST"
    )
    seeds: int | None = param(None, "Training seeds of each K.  [default: 5]", least=1)
    first_seed: int | None = param(None, "The first of them.  [default: 0]", least=0)
    arm_seeds: int | None = param(None, "How many of them the baselines, controls and other radii get.  [default: all]", least=1)
    standard_seeds: int | None = param(None, "Training seeds of K = 0, where they are more than the others.", least=1)
    arch: str | None = param(None, "Architecture to train (vizrobust list archs), or your network's code.", metavar="REF")
    epochs: int | None = param(None, "Default: those of the data set's own recipe, else 20.", least=1)
    eps: float | None = param(
        None, "Radius of training and evaluation; default: the smallest at which FGSM fails.", kind="fraction"
    )
    baselines: tuple[str, ...] | None = param(
        None, "Named baselines: fgsm, fast, noise, or none.  [default: all]", kind="names", aliases=("--arms",), metavar="LIST"
    )
    controls: tuple[str, ...] | None = param(
        None, "k0-early, k1-long, k8-eps/4, k8-eps/2, k0-shuffled, or none.  [default: all]", kind="names", metavar="LIST"
    )
    radius_eps: tuple[float, ...] | None = param(
        None, "Train networks of one K at these other radii too, such as 1/255,2/255,8/255.", kind="fractions", metavar="LIST"
    )
    radius_k: int | None = param(None, "Their attack steps K.  [default: 1]", least=1)
    masked_eps: float | None = param(
        None, "Train networks with masked gradients too, by one step of this large radius, such as 32/255.", kind="fraction"
    )
    image_seeds: int | None = param(None, "Pictures of each class unit.  [default: 9]", least=2)
    layer: str | None = param(
        None, "Hidden layer whose units are drawn; default: the last one of a built-in network.", metavar="NAME"
    )
    hidden: int | None = param(None, "Hidden units, drawn at random; 0 is none.  [default: 50]", least=0)
    hidden_seeds: int | None = param(None, "Pictures of each hidden unit.  [default: 9]", least=2)
    judges: tuple[str, ...] = param((), "One more judge; several allowed.", flag="--judge", metavar="REF")
    judge_independent: bool = param(False, "State that the judges saw none of the networks' training images.")
    encoder: str | None = param(None, "Network whose features answer the 2AFC; default: each judge's own.", metavar="REF")
    recipes: tuple[Any, ...] = param(
        (), "How pictures are rendered; several allowed.  [default: plain and fourier]", kind="recipe", flag="--recipe"
    )
    images: int | None = param(None, "Test images to attack.  [default: 1000]", least=1)
    restarts: int | None = param(None, "Restarts of PGD-50 on them.  [default: 5]", least=1)
    masking_images: int | None = param(None, "Of these for the whole masking diagnosis; 0 is none.  [default: 200]", least=0)
    unforeseen_images: int | None = param(None, "Of these for unforeseen attacks; 0 is none.  [default: 200]", least=0)
    corruption_images: int | None = param(None, "Of these for corruptions; 0 is none.  [default: 200]", least=0)
    quick: bool = param(False, "At most ten minutes: one seed, fewer pictures, lighter attacks.")
    plan: bool = param(False, "Say what the study would cost and what effect it could see, and do not begin.", role="view")
    pilot: str | None = param(
        None, "report.json of an earlier study, whose spread over training seeds says what this one can see.", kind="file"
    )
    networks: str | None = param(
        None, "Folder of an earlier study: its networks are taken where the training is the same.", role="view", metavar="DIR"
    )
    precision: str = param("fp32", "bf16 is autocast to bfloat16, in training alone.", choices=PRECISIONS)
    explain_images: int | None = param(
        None, "Test images whose attribution maps are measured (extra explain); 0 is none.  [default: 0]", least=0
    )
    explain_methods: tuple[Any, ...] = param(
        (), "How; several allowed.  [default: saliency, smoothgrad and integrated gradients]", kind="attribution",
        flag="--explain-method", metavar="SPEC",
    )  # fmt: skip
    feature_images: int | None = param(
        None, "Test images for the hidden layer's effective number of features; 0 is none.  [default: 0]", least=0
    )
    radii: tuple[float, ...] | None = param(None, "Candidates of the rule that chooses eps.", cli=False)
    matched: bool | None = param(None, "Match hidden units across networks.", cli=False)
    frames: int | None = param(None, "Frames of each optimization path.", least=2, cli=False)
    batch_size: int | None = param(None, "Pictures rendered together.", least=1, cli=False)
    pgd_steps: int | None = param(None, "Steps of the strong PGD.", least=1, cli=False)
    targets: int | None = param(None, "Target classes of APGD.", least=0, cli=False)
    unforeseen: tuple[str, ...] | None = param(None, "Unforeseen attacks.", kind="names", cli=False)
    query_images: int | None = param(None, "Test images of the 2AFC.", least=1, cli=False)
    exemplar_images: int | None = param(None, "Validation images among which exemplars are sought.", least=1, cli=False)
    short_steps: int | None = param(None, "Steps of the short PGD.", least=1, cli=False)
    severity: int | None = param(None, "Severity of the corruptions, 1 to 5.", least=1, cli=False)
    eps_rule_images: int | None = param(None, "Test images on which eps is chosen.", least=1, cli=False)
    masking_queries: int | None = param(None, "Queries of Square in the masking diagnosis.", least=0, cli=False)

    def check(self) -> None:
        if not self.models and self.data is None:
            raise ParameterError("say what to study: {data} REF trains a sweep on it, or name two or more checkpoints")
        if self.explain_methods and not self.explain_images:
            raise ParameterError("{explain_methods} needs images to explain; give {explain_images}, such as 100")
        trained = (self.steps, self.seeds, self.baselines, self.controls, self.epochs)
        if self.models and any(trained):
            raise ParameterError(
                "checkpoints are given, so nothing is trained; leave out {steps}, {seeds}, {baselines}, {controls}, {epochs}"
            )


@spec
@dataclass(frozen=True, kw_only=True)
class VerifyRequest(Seeded):
    """Check a study's report: render and score pictures again, attack images again, compute its numbers from its rows.

    Exit code 0 where everything holds, 1 where something differs; the table says what was checked, what was only read, and
    what cannot be checked. `--seed` draws others. On another processor than the recorded one pictures may differ in their
    last bits: then scores must agree to 2 %.

    \b
    vizrobust verify runs/study
    vizrobust verify gallery/mnist-study/report.json --seed 7
    """

    report: str = param(argument=True, metavar="REPORT.json", help="A study's folder, or its report.json.")
    prereg: str | None = param(
        None, "A copy of prereg.json from the start of the study; default: the one beside the report.", kind="file"
    )
    judges: tuple[str, ...] = param(
        (), "A judge's or encoder's file here, with ::arch= where it needs code; several allowed.", flag="--judge", metavar="REF"
    )
    networks: str | None = param(
        None, "Folder of another study: its networks stand for those that the report's folder lacks.", metavar="DIR"
    )


@spec
@dataclass(frozen=True, kw_only=True)
class TrialsRequest(Request):
    """Ask a person what the machine is asked: which of two images excites the unit whose pictures are shown?

    RUN is the folder of a finished study. The page is blind: it holds pixels and nothing about where they are from; the
    right answers stay in RUN/trials-key.json. It works by keyboard and can be interrupted. Its answers are scored with
    --answers: the share right for each checkpoint, and how well each machine metric ranks the same units. Several files are
    scored together, with how far people agree.

    \b
    vizrobust trials runs/study --out trials.html
    vizrobust trials runs/study --out trials.html --checkpoints k0-s0,k8-s0 --trials 40 --recipe fourier
    vizrobust trials runs/study --answers ada.json --answers ben.json
    """

    run: str = param(argument=True, metavar="RUN", kind="folder", help="The folder of a finished study.")
    out: str | None = param(None, "The page to write, an .html file.", kind="file")
    answers: tuple[str, ...] = param((), "Score the JSON file that the page lets one download; several allowed.", kind="file")
    checkpoints: tuple[str, ...] = param(
        (), "With commas between; default: of every K the first training seed.", kind="names", metavar="NAMES"
    )
    trials: int = param(60, "Questions; about a tenth more are catch trials.")
    recipe: str = param("plain", "Which of the study's pictures are shown.", metavar="NAME")
    layer: str = param("logits", "Which of the study's layers is asked about.", metavar="NAME")
    seed: int = param(0, "Seed of all random numbers.")

    def check(self) -> None:
        if (self.out is None) == (not self.answers):
            raise ParameterError("say what to do: {out} trials.html makes a page, {answers} FILE scores the answers to one")


@spec
@dataclass(frozen=True, kw_only=True)
class LayersRequest(Request):
    """List a network's layers: output shape (units first), units, layout, and whether `neurons` can render them.

    \b
    vizrobust layers mnist-k8
    vizrobust layers torchvision:resnet50@random --filter 'layer3*conv'
    vizrobust layers torchvision:vit_b_16@random --all

    In transformers the patch tokens are a map, L:class is the class token of layer L, L:token1 its next token that is
    no patch, and L:heads the attention heads. Of blocks that are alike, one after the other, the first is listed.
    """

    model: Any = param(argument=True, kind="model", help="A checkpoint: name, file or run folder.")
    filter: str = param(
        "", "Only layers whose name or kind has this text in it, or fits it with * and ?.", role="view", metavar="TEXT"
    )
    all: bool = param(False, "Also the blocks that are like the one before.", role="view")


@spec
@dataclass(frozen=True, kw_only=True)
class ListRequest(Request):
    """List attacks, data sets, models and everything else that has a name; of one thing its fields and an example.

    \b
    vizrobust list
    vizrobust list attacks
    vizrobust list attacks PGD
    vizrobust list models
    """

    kind: str | None = param(None, argument=True, metavar="KIND", help="Which catalogue; default: all.")
    name: str | None = param(None, argument=True, metavar="NAME", help="One thing of the catalogue.")
