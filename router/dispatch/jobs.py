"""A job: one checked request, in the form that workers take, whichever surface it came through."""

from dataclasses import dataclass
from enum import Enum

from uplion.dispatch.v1.run_pb2 import RunRequest
from uplion.inference.v1.sampling_pb2 import BudgetCut

from common import names
from common.identity import Identity
from common.operations import Capability


class Delivery(Enum):
    """How an answer reaches the client, and so how it is read from the worker."""

    STREAM = "stream"  # as it is made
    WHOLE = "whole"  # at its end, all or nothing; read once a second, so that a lost worker costs little
    ONCE = "once"  # the same in one unary call: for short answers, of which little is made again


_SHORT_TOKENS = 64
_SHORT_EMBEDDING_TOKENS = 4096  # of the inputs; more of them take so long that the worker's signs of life are wanted


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do for a caller."""

    identity: Identity
    capability: Capability
    model: str
    run: RunRequest  # without what belongs to an attempt; never written to
    choices: int
    estimated_tokens: int
    lane: str = names.LANE_DEFAULT

    @property
    def short(self) -> bool:
        """The answer has so few tokens that a lost attempt may begin anew."""
        if self.capability is Capability.EMBEDDING:
            return self.estimated_tokens <= _SHORT_EMBEDDING_TOKENS
        return 0 < self.run.sampling.max_output_tokens * self.choices <= _SHORT_TOKENS

    @property
    def output_cap(self) -> BudgetCut | None:
        """The budget whose rest bounds this answer; None where the caller or the model set the bound."""
        identity, most = self.identity, self.run.sampling.max_output_tokens
        if not identity.capped_by or most != identity.max_output_tokens:
            return None
        return BudgetCut(limit=identity.capped_by, max_output_tokens=most)
