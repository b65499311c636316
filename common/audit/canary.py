"""Gradient canaries in one audit run: do guesses about them know more than the claim allows?

A canary is a privacy unit whose gradient an auditor chose: ten clip norms long, on numbers of the
adapter that no other canary has. Fair coins decide which of the m canaries are among a site's
units. The job is then trained by the site's own code, and the auditor, who sees the release of
every step, adds up each canary's component. The highest scores are guessed to be in, the lowest to
be out; how many are guessed is fixed and written down, with a commitment to the coins, before
anything is trained. ``onerun.py`` has what right guesses say.

Power: m = 250 shows next to nothing; m = 1,000 with 100 guesses refutes no claim above 5.5, however
broken. ``power`` says both beforehand, from public numbers alone.

Not covered: faults that canaries cannot see (a sum that is bounded as a whole, noise that comes
back), which the self-checks look for; a run with canaries is an audit, never a release.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.audit import onerun
from common.errors import InvalidInput
from common.privacy.event import GaussianSteps
from common.privacy.stream import KEY_BYTES, Stream

LENGTH = 10.0  # of a canary's gradient, in clip norms: clipping has work to do
LEAST_CANARIES, MOST_CANARIES = 20, 100_000
CANARIES = 1000

Watch = Callable[[Tensor], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Canaries:
    """The m gradients: each has a block of the vector's numbers to itself, with random signs.

    Attributes:
        blocks: (m, width) places in the flat vector, all different.
        signs: (m, width), each 1 or -1.
        size: P.
        length: L2 norm of a canary's gradient.
    """

    blocks: NDArray[np.int64]
    signs: NDArray[np.float32]
    size: int
    length: float

    def gradients(self, numbers: Sequence[int]) -> NDArray[np.float32]:
        """The gradients of some canaries, (n, P)."""
        rows = np.zeros((len(numbers), self.size), dtype=np.float32)
        height = np.float32(self.length / np.sqrt(self.blocks.shape[1]))
        for row, number in zip(rows, numbers, strict=True):
            row[self.blocks[number]] = height * self.signs[number]
        return rows

    def components(self, vector: NDArray[np.float32]) -> Floats:
        """Each canary's component of a vector (P,), (m,)."""
        width = self.blocks.shape[1]
        along = vector.astype(np.float64)[self.blocks] * self.signs
        components: Floats = along.sum(axis=1) / np.sqrt(width)
        return components


def make_canaries(count: int, size: int, clip_norm: float, key: bytes) -> Canaries:
    """``count`` canaries for an adapter of ``size`` trained numbers.

    Raises:
        InvalidInput: too few, or more than the adapter has numbers.
    """
    if not LEAST_CANARIES <= count <= min(size, MOST_CANARIES):
        raise InvalidInput(
            f"canaries must be {LEAST_CANARIES} to {min(size, MOST_CANARIES)} (the adapter trains "
            f"{size} numbers), got {count}"
        )
    stream, width = Stream(key), size // count
    order = np.argsort(stream.words(size), kind="stable")[: count * width]
    signs = (stream.words(count * width) & np.uint64(1)).astype(np.float32) * 2 - 1
    return Canaries(
        order.reshape(count, width), signs.reshape(count, width), size, LENGTH * clip_norm
    )


def toss(count: int, key: bytes) -> NDArray[np.bool_]:
    """A fair coin for every canary, (m,)."""
    coins: NDArray[np.bool_] = (Stream(key).words(count) & np.uint64(1)).astype(bool)
    return coins


@dataclass(frozen=True, slots=True)
class Plan:
    """What is fixed before anything is trained.

    Attributes:
        job_sha256: the job.
        code_sha256: the code.
        site: whose population counts.
        epsilon: what the job claims.
        delta: of the claim.
        canaries: m.
        guesses: k, half of them for the highest scores and half for the lowest.
        significance: over all runs.
        runs: audits of this claim that share it.
        run: which of them this is, from 1.
        commitment: sha256 of the key that all coins follow from.
    """

    job_sha256: str
    code_sha256: str
    site: str
    epsilon: float
    delta: float
    canaries: int
    guesses: int
    significance: float
    runs: int
    run: int
    commitment: str

    def to_bytes(self) -> bytes:
        """JSON, as it is written before the run."""
        document = {"veiltune_audit_plan": 1, **asdict(self)}
        return json.dumps(document, indent=2).encode() + b"\n"

    @property
    def sha256(self) -> str:
        """The document's own name, which the report repeats."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def level(self) -> float:
        """What of the significance each of a run's two bounds may use."""
        return self.significance / self.runs / 2


def commitment(key: bytes) -> str:
    """What is told of a key before it is shown."""
    return hashlib.sha256(b"veiltune audit coins\n" + key).hexdigest()


def require_key(plan: Plan, key: bytes) -> None:
    """The key is the one that was committed to.

    Raises:
        InvalidInput: it is another one.
    """
    if len(key) != KEY_BYTES or commitment(key) != plan.commitment:
        raise InvalidInput("coins must be those that the plan committed to, got others")


@dataclass(frozen=True, slots=True)
class Guessed:
    """How a run's guesses went.

    Attributes:
        right: guesses that were right.
        general: the least epsilon by Steinke et al., for any claim.
        gaussian: by Mahloujifar et al., for a Gaussian trade-off curve.
    """

    right: int
    general: float
    gaussian: float

    @property
    def bound(self) -> float:
        """The greater of both; each has half of the significance."""
        return max(self.general, self.gaussian)


def guess(scores: Floats, coins: NDArray[np.bool_], plan: Plan) -> Guessed:
    """Guess as the plan says, and count.

    Raises:
        InvalidInput: not a score and a coin for every canary.
    """
    if not scores.shape == coins.shape == (plan.canaries,):
        raise InvalidInput(
            f"scores must be one for each of {plan.canaries} canaries, got {scores.shape}"
        )
    order = np.argsort(scores, kind="stable")
    half = plan.guesses // 2
    right = int(coins[order[-half:]].sum()) + int((~coins[order[:half]]).sum())
    return Guessed(right, *_bounds(plan, right))


def _bounds(plan: Plan, right: int) -> tuple[float, float]:
    numbers = (plan.canaries, plan.guesses, right, plan.delta, plan.level)
    return onerun.general_bound(*numbers), onerun.gaussian_bound(*numbers)


@dataclass(frozen=True, slots=True)
class Power:
    """What a run can show, known beforehand.

    Attributes:
        right: guesses that are right on average if the mechanism is sound.
        expected: the bound that follows.
        ceiling: the bound if every guess is right.
    """

    right: int
    expected: float
    ceiling: float

    def in_words(self, epsilon: float) -> str:
        """What to think of it."""
        if self.ceiling <= epsilon:
            return (
                f"powerless: even all guesses right would show no more than {self.ceiling:.2f}, "
                f"below the claim of {epsilon:g}; take more canaries or guesses"
            )
        return (
            f"a sound mechanism shows about {self.expected:.2f} of {epsilon:g}; "
            f"no outcome can show more than {self.ceiling:.2f}"
        )


def power(plan: Plan, event: GaussianSteps) -> Power:
    """What the plan's run can show of ``event``, the job's steps."""
    right = onerun.ideal_right(plan.canaries, plan.guesses, event)
    ceiling = onerun.ceiling(plan.canaries, plan.guesses, plan.delta, plan.level)
    return Power(right, max(_bounds(plan, right)), ceiling)


@dataclass
class Scorer:
    """Adds up what every release says of every canary.

    Attributes:
        canaries: whose components are added up.
        unit: what one clip norm of the sum is in a release.
        scores: (m,), in clip norms, over all steps so far.
        steps: how many were seen.
    """

    canaries: Canaries
    unit: float
    scores: Floats
    steps: int = 0

    def watch(self, released: Tensor) -> None:
        """Take a step's release (P,) into account."""
        self.scores += self.canaries.components(released.detach().cpu().numpy()) / self.unit
        self.steps += 1


def scorer(canaries: Canaries, clip_norm: float, divisor: float) -> Scorer:
    """A scorer that has seen nothing."""
    return Scorer(canaries, clip_norm / divisor, np.zeros(len(canaries.blocks)))
