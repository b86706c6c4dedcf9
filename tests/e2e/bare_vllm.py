"""Asks vLLM alone: `bare_vllm.py MODEL FILE QUESTION…` writes the tokens of its greedy answers to FILE.

A program by itself, into which nothing of the project is imported.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main(model: str, file: str, questions: list[str]) -> None:
    llm = LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=8)
    options = SamplingParams(temperature=0, max_tokens=24, logprobs=0)
    answers = {}
    for question in questions:
        (output,) = llm.chat([{"role": "user", "content": question}], options, use_tqdm=False)
        answer = output.outputs[0]
        chosen = zip(answer.token_ids, answer.logprobs, strict=True)
        answers[question] = [entries[token].decoded_token for token, entries in chosen]
    Path(file).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
