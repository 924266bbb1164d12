"""Whether the demo's model learnt the style and kept what it knew, by its first and last previews.

The previews show things that no training image shows, and real drawings of these in the style were
held out. A validation loss tells how well noise is found in those; it does not tell whether what is
drawn is still what was asked for. The tagger that comes with the demo does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from impasto.data.scan import scan_folder
from impasto.demo.recipe import HELD_OUT, TAGGER
from impasto.evaluation.distances import kernel_estimate
from impasto.evaluation.looking import Looks, Picture, look_at
from impasto.evaluation.networks import TaggerNetwork
from impasto.evaluation.obedience import PromptTags, seen_shares
from impasto.progress import Progress
from impasto.runs import RunDirectory, step_name


@dataclass(frozen=True)
class Evidence:
    """What is seen in the previews of a step.

    Attributes:
        step: The step.
        recognised: Previews in which the tagger sees all that the prompt names.
        asked: Previews whose prompts name something that the tagger knows.
        distance: Kernel distance to the held-out drawings by the tagger's features (Bińkowski et
            al. 2018, arXiv:1801.01401): lower is nearer, and 0 no difference.
    """

    step: int
    recognised: int
    asked: int
    distance: float


def read_evidence(
    run: RunDirectory, prompts: Sequence[str], progress: Progress
) -> tuple[Evidence, Evidence] | None:
    """What the first and the last previews of a run show; None where there are not two of them.

    Args:
        run: A finished run.
        prompts: What the previews were asked to show, in their order.
        progress: Is told how far it is.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    steps = run.sampled_steps()
    if len(steps) < 2 or len(prompts) < 2:
        return None
    tagger = TaggerNetwork("demo", TAGGER, progress)
    finder = PromptTags(tagger.table)
    wanted = [finder.of(prompt) for prompt in prompts]
    held_out = [Picture(record.path) for record in scan_folder(HELD_OUT).records]
    real = look_at(held_out, [tagger], "the held-out images", progress)

    def evidence(step: int) -> Evidence:
        folder = run.samples / step_name(step)
        drawn = [Picture(folder / f"{number:03d}.png") for number in range(len(prompts))]
        return _evidence(step, look_at(drawn, [tagger], "the previews", progress), real, wanted)

    return evidence(steps[0]), evidence(steps[-1])


def _evidence(step: int, looks: Looks, real: Looks, wanted: Sequence[frozenset[int]]) -> Evidence:
    shares = [s for s in seen_shares(wanted, looks.tags or ()) if s is not None]
    x, y = looks.features["demo"], real.features["demo"]
    none_drawn = np.empty((0, len(x))), np.empty((0, len(y)))
    distance = kernel_estimate(x, np.arange(len(x)), y, *none_drawn).value
    return Evidence(step, sum(share == 1 for share in shares), len(shares), distance)
