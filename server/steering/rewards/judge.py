"""The model grades its own answers (LatentSeek's self-reward, arXiv 2505.13308).

Owns the four criteria and their wording. One constrained token per criterion and answer, all of them in
one batch.
"""

from collections.abc import Mapping, Sequence

from model.engine import Decoding, Engine, Generation, SteeredPrompt
from server.steering.call import RenderedPrompt

CRITERIA: Mapping[str, str] = {
    "correctness": "Is the final answer right?",
    "comprehension": "Does the answer address what was asked, with every detail of the question?",
    "calculation": "Are all calculations and conclusions valid?",
    "format": "Is the answer in the form that was asked for, complete and without clutter?",
}

GRADES = ("0", "1", "2", "3", "4", "5")
"""Single digits: one token in every tokenizer, and as fine as small models can tell apart."""


class Judge:
    """Mean grade over the criteria, in [0, 1]; does not apply to an answer too long to be graded."""

    name = "judge"
    tokens_per_answer = len(CRITERIA)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one mean grade per answer.

        Raises:
            EngineError: the engine failed.
        """
        rendered = [self._questions(prompt.question, answer.text) for answer in answers]
        fits = [all(len(question) < self._engine.max_model_len for question in one) for one in rendered]
        batch = [
            SteeredPrompt(question)
            for one, fit in zip(rendered, fits, strict=True)
            for question in one
            if fit
        ]
        if not batch:
            return [None] * len(answers)
        grades = await self._engine.generate(batch, Decoding(max_tokens=1, choices=GRADES))
        values = iter(_value(grade.text) for grade in grades)
        return [sum(next(values) for _ in CRITERIA) / len(CRITERIA) if fit else None for fit in fits]

    def _questions(self, question: str, answer: str) -> list[tuple[int, ...]]:
        return [
            self._engine.render(
                [
                    {
                        "role": "user",
                        "content": f"Question:\n{question}\n\nAnswer:\n{answer}\n\n{criterion} "
                        f"Grade it from {GRADES[0]} (not at all) to {GRADES[-1]} (fully). "
                        "Reply with the digit only.",
                    }
                ]
            )
            for criterion in CRITERIA.values()
        ]


def _value(text: str) -> float:
    grade = text.strip()
    return GRADES.index(grade) / (len(GRADES) - 1) if grade in GRADES else 0.0
