"""Agreement with the model's own sampled rollouts, the signal of TTRL (arXiv 2504.16084).

Owns the vote. Knows nothing of how answers are decoded.
"""

from collections.abc import Sequence

from model.engine import Generation
from server.steering.prompt import RenderedPrompt
from server.steering.search.consensus import counted, said

CONSISTENCY = "consistency"


class Consistency:
    """Share of the rollouts' votes that an answer of the majority has; 0 for any other answer.

    TTRL gives 1 to the majority however small it is; the share also says how far to trust it, so that a
    threshold of 0.5 means that most rollouts agree. In a tie each leading answer has its share.
    Those that vote are decoded before a search begins, and the set does not change while a latent is
    refined: rewards of different steps can be compared, and what is being tried does not vote for itself.
    They come from the unsteered model, and as many from the start when that is what would be served.

    An answer that was cut off, or says nothing to compare (empty, or free text without a number), has
    no vote and scores 0. One vote among several rollouts agrees with nothing: all score 0. Without any
    vote, or with a single rollout, the signal does not apply.
    """

    name = CONSISTENCY

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one share per answer, or None for all of them."""
        votes = counted(prompt, pool)
        if not votes or len(pool) < 2:
            return [None] * len(answers)
        if votes.total() < 2:
            return [0.0] * len(answers)
        most = max(votes.values())
        shares = {answer: count / votes.total() for answer, count in votes.items() if count == most}
        return [shares.get(said(prompt, answer) or "", 0.0) for answer in answers]
