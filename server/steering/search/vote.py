"""The search without latents of its own: answers of the model vote.

Self-consistency (arXiv 2203.11171) on equal terms with the latent that would be served, if there is one. Owns
nothing but that no steps are taken: a session opens with the votes.
"""

from typing import Literal

from server.steering.search.session import Session


class Vote:
    """Gives the answer that most samples agree with."""

    name: Literal["vote"] = "vote"

    async def run(self, session: Session) -> None:
        """Leave it at the votes."""
