"""Retrieval keys out of hidden states (decisions/latents.md).

Owns the centring of final hidden states and the prompts that give the centre. Knows nothing of the
engine that computes the states: each engine sends `KEY_PROBES` through its own key path.

Raw states at the last prompt token all point the same way, since they all predict the start of an
answer; less the mean over many kinds of prompt, what is left tells kinds of prompt apart.
"""

import torch
from torch.nn.functional import normalize

KEY_VERSION = 1
"""Changes with the probes or the arithmetic below, so that keys of two versions never meet."""

KEY_PROBES: tuple[str, ...] = (
    "What is the tallest mountain in Europe?",
    "Who painted the ceiling of the Sistine Chapel?",
    "Explain in two sentences why leaves change colour in autumn.",
    "What does a thermostat do?",
    "Write four lines of verse about an empty railway station.",
    "Tell me a short story about a lighthouse keeper and a lost dog.",
    "Make up a slogan for a shop that repairs umbrellas.",
    "Give me three names for a small sailing boat.",
    "A baker fills 6 trays with 12 rolls each and sells 50 rolls. How many rolls are left?",
    "Simplify the fraction 18/24.",
    "Solve for x: 3x + 7 = 25.",
    "What is 15 percent of 80?",
    "Write a Python function that reverses a list without changing the original.",
    "Why does this SQL query return no rows? SELECT name FROM users WHERE age = NULL;",
    "Give me a shell command that counts the lines of all text files in a folder.",
    "Is this review positive or negative? 'The soup was cold and the waiter never came back.'",
    "Sort these words into fruit and vegetables: carrot, plum, leek, cherry.",
    "Does the second sentence follow from the first? All cats sleep. Tom is a cat, so Tom sleeps.",
    "Translate into French: The train leaves at half past seven.",
    "How do you say 'thank you very much' in Japanese?",
    "Correct the grammar: She don't has no time for come to the meeting.",
    "Summarise: The council met on Tuesday, argued for three hours about parking, and decided nothing.",
    "Rewrite this more politely: Send me the report now.",
    "List the names of people in this text: Maria called Ahmed before Lena arrived.",
    "Return a JSON object with the keys city and country for Lisbon.",
    "How can I fall asleep more easily?",
    "I feel nervous about a job interview tomorrow. What should I do?",
    "Plan a weekend in the mountains for two people who do not like hiking.",
    "What should I cook with rice, eggs and spinach?",
    "What are the arguments for and against a four-day working week?",
    "Hello! How are you today?",
    "Pretend you are a pirate and introduce yourself.",
)
"""Each is one user message, rendered by the model's own chat template."""


def centre(raw_states: torch.Tensor) -> torch.Tensor:
    """Return the centre, (d,) float32, of the probes' raw final hidden states, (N, d)."""
    if raw_states.ndim != 2 or not len(raw_states):
        raise ValueError(f"raw states have shape {tuple(raw_states.shape)}, expected (N, d)")
    return raw_states.float().mean(dim=0)


def centred(raw_states: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Return keys of norm 1, (B, d) float32, from raw final hidden states, (B, d)."""
    return normalize(raw_states.float() - centre.float(), dim=-1)
