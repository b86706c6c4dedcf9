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

    def prompt_tokens(self, prompt: RenderedPrompt, answers: Sequence[Generation]) -> int:
        """Return the tokens of all questions about these answers."""
        return sum(len(question) for answer in answers for question in self._questions(prompt, answer) or ())

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one mean grade per answer.

        Raises:
            EngineError: the engine failed.
        """
        asked = [self._questions(prompt, answer) for answer in answers]
        batch = [SteeredPrompt(question) for questions in asked if questions for question in questions]
        if not batch:
            return [None] * len(answers)
        grades = await self._engine.generate(batch, Decoding(max_tokens=1, choices=GRADES))
        values = iter(_value(grade.text) for grade in grades)
        return [
            sum(next(values) for _ in questions) / len(questions) if questions else None
            for questions in asked
        ]

    def _questions(self, prompt: RenderedPrompt, answer: Generation) -> list[tuple[int, ...]] | None:
        """Return one prompt per criterion, None when one of them is too long for the model."""
        questions = [
            self._engine.render(
                [
                    {
                        "role": "user",
                        "content": f"Question:\n{prompt.question}\n\nAnswer:\n{answer.text}\n\n{criterion} "
                        f"Grade it from {GRADES[0]} (not at all) to {GRADES[-1]} (fully). "
                        "Reply with the digit only.",
                    }
                ]
            )
            for criterion in CRITERIA.values()
        ]
        return questions if max(map(len, questions)) < self._engine.max_model_len else None


def _value(text: str) -> float:
    grade = text.strip()
    return GRADES.index(grade) / (len(GRADES) - 1) if grade in GRADES else 0.0
