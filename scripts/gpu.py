"""What of this project can be tried on a GPU in minutes, as a table.

    python scripts/gpu.py MODEL                  on a machine with a GPU
    python scripts/gpu.py MODEL --device cpu ... a rehearsal: the CPU beside itself, for which two cores need
                                                 --prompts 4 --tokens 16 --train 32 --held-out 16
                                                 --night-steps 10 --step-tokens 96 --repetitions 1
                                                 --asked 8 --stream-tokens 96

Owns the comparison of one device with the CPU: gradients, decoding with latents, a night's training on the
example stream, `bench step`, and a stream of word problems with long answers. Needs torch, transformers and
MODEL, a folder in Hugging Face's layout with a chat template; no vLLM, no network, nothing installed. A
folder without weights gets random ones, good for times and for comparing devices, not for what a night is
worth. A part that cannot run says so in the table, and the others go on; each row is printed when it is
known. Ends with 1 when something did not run.

The night learns the labels of examples/topics.jsonl, as if a verifier had let only right answers into
memory: it shows that training on the device works, not what the loop reaches without labels
(docs/results.md). The stream knows none: its night learns what samples agree on, and new questions are
answered behind what that was, whatever the evidence, beside the plain answer and the majority of eight.
`--data` names other questions.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

PARTS = ("gradient", "decoding", "night", "step", "stream")
HEADLINES = ROOT / "examples" / "topics.jsonl"
PROBLEMS = ROOT / "examples" / "word_problems.jsonl"
INSTRUCTION = r"Put the final answer in \boxed{}."
VOTES = 8
TOGETHER = 16
"""Questions whose samples are decoded in one batch."""
NOISE = 0.02
"""Of the latents beside the neutral ones, so that rows differ."""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    found: str
    seconds: str = ""
    ok: bool = True


Show = Callable[[Row], None]


def main(arguments: Sequence[str] | None = None, write: Callable[[str], None] = print) -> int:
    """Run the parts that are asked for and write the table; 1 when one did not run."""
    options = _options(arguments)
    failures = 0

    def show(row: Row) -> None:
        nonlocal failures
        failures += not row.ok
        write(f"{row.what:<36} {row.seconds:>22}  {row.found}")

    with tempfile.TemporaryDirectory(prefix="latentevolve-") as folder:
        try:
            show(_machine(options.device))
            model = _with_weights(options.model, Path(folder), show)
        except Exception as error:
            show(_not_run("setting up", error))
            return 1
        for part in options.parts:
            begun = time.monotonic()
            try:
                _RUN[part](model, options, show)
            except Exception as error:
                show(_not_run(part, error))
            _tidy()
            write(f"{'':<36} {time.monotonic() - begun:>20.0f} s  ({part}, all of it)")
    return 1 if failures else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--device", default="cuda", help="what is beside the CPU (default: cuda)")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), metavar="A,B")
    parser.add_argument("--length", type=int, default=16, help="L, soft vectors per latent")
    parser.add_argument("--placement", default="user_turn_end", help="user_turn_end or after_header")
    parser.add_argument("--prompts", type=int, default=16, help="of gradient and decoding")
    parser.add_argument("--tokens", type=int, default=64, help="of every decoded answer")
    parser.add_argument("--train", type=int, default=96, help="headlines of the night")
    parser.add_argument("--held-out", type=int, default=48, help="headlines that judge it")
    parser.add_argument("--night-steps", type=int, default=100, help="optimisation steps of the night")
    parser.add_argument("--step-tokens", type=int, default=1024, help="of every answer of `bench step`")
    parser.add_argument("--repetitions", type=int, default=2, help="of `bench step`")
    parser.add_argument("--population", type=int, default=4, help="of `bench step`; even")
    parser.add_argument("--data", type=Path, default=PROBLEMS, help="questions of the stream, with answers")
    parser.add_argument("--day", type=int, default=24, help="questions of its day")
    parser.add_argument("--asked", type=int, default=16, help="new questions after its night")
    parser.add_argument("--stream-tokens", type=int, default=200, help="of its answers")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def _not_run(what: str, error: Exception) -> Row:
    lines = " ".join(str(error).split())
    return Row(what, f"NOT RUN: {type(error).__name__}: {lines[:300]}", ok=False)


def _machine(device: str) -> Row:
    import torch
    import transformers

    from bench.machine import describe, machine

    name = device
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise RuntimeError("torch finds no CUDA device; `--device cpu` rehearses without one")
        gpu = torch.cuda.get_device_properties(device)
        name = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return Row("machine", f"{name} beside {describe(machine())}; {versions}")


def _with_weights(model: Path, folder: Path, show: Show) -> str:
    """Return a folder with weights: the given one, or a copy with random ones."""
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} holds no config.json")
    if any(model.glob("*.safetensors")):
        show(Row("model", str(model)))
        return str(model)
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for file in model.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.float32)
    network.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in network.parameters())
    show(Row("model", f"{model}, RANDOM WEIGHTS, {count / 1e6:.0f} million"))
    return str(folder)


def _tidy() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load(model: str, options: argparse.Namespace, device: str, dtype: Any) -> Any:
    from model.frozen_model import FrozenModel

    return FrozenModel(
        model,
        length=options.length,
        placement=options.placement,
        device=device,
        dtype=dtype,
        max_model_len=2048,
    )


def _dtypes(device: str) -> tuple[Any, ...]:
    """Return what is compared with float32 on the CPU; the last is what a night computes in there."""
    import torch

    return (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16)


def _headlines(count: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in HEADLINES.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    if len(rows) < count:
        raise ValueError(f"{HEADLINES.name} has {len(rows)} headlines, not {count}")
    return rows[:count]


def _steered(model: Any, count: int) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return prompts of headlines with latents near the neutral one, the same on every device."""
    import torch

    from model.engine import SteeredPrompt

    rows = _headlines(count)
    noise = torch.Generator().manual_seed(0)
    neutral = model.neutral_latent()
    return [
        SteeredPrompt(
            model.render([{"role": "user", "content": row["question"]}]),
            neutral + NOISE * torch.randn(neutral.shape, generator=noise),
        )
        for row in rows
    ], rows


def _timed(run: Callable[[], Any], repetitions: int = 3) -> tuple[Any, float]:
    """Return what a call gives and the median of its seconds, after one that warms up.

    What it gives lies on the CPU, so a GPU has finished when it returns.
    """
    run()
    seconds = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - begun)
    return found, statistics.median(seconds)


def _against(theirs: float, ours: float) -> str:
    return f"{theirs:.2f} → {ours:.2f} s ({theirs / ours:.1f}×)"


def gradient(model: str, options: argparse.Namespace, show: Show) -> None:
    """The gradient worker's answer to one batch, on the device beside the CPU in float32."""
    import torch

    from model.engine import Label

    def ask(device: str, dtype: Any) -> tuple[Any, float]:
        frozen = _load(model, options, device, dtype)
        prompts, rows = _steered(frozen, options.prompts)
        labels = [Label.of(frozen.answer_tokens(row["answer"])) for row in rows]
        return _timed(lambda: frozen.latent_gradient(prompts, labels, [1.0] * len(prompts)))

    theirs, cpu_s = ask("cpu", torch.float32)
    for name, ours, device_s in _asked("gradient", ask, options.device, show):
        cosines = torch.cosine_similarity(ours.gradient.flatten(1), theirs.gradient.flatten(1))
        off = (ours.log_likelihood - theirs.log_likelihood).abs().max()
        found = f"cosine {cosines.min():.5f} at least, {cosines.mean():.5f} on average of {len(cosines)}"
        show(Row(name, f"{found}; log-likelihoods differ by {off:.1e} at most", _against(cpu_s, device_s)))


def _asked(
    part: str, ask: Callable[[str, Any], tuple[Any, float]], device: str, show: Show
) -> Iterator[tuple[str, Any, float]]:
    """Yield (name of the row, what was found, seconds) for each precision of the device that can be asked."""
    for dtype in _dtypes(device):
        _tidy()
        name = f"{part}, {str(dtype).removeprefix('torch.')}"
        try:
            found, seconds = ask(device, dtype)
        except Exception as error:
            show(_not_run(name, error))
            continue
        yield name, found, seconds


def decoding(model: str, options: argparse.Namespace, show: Show) -> None:
    """Greedy answers with latents, on the device beside the CPU in float32."""
    import torch

    from model.engine import Decoding

    def ask(device: str, dtype: Any) -> tuple[Any, float]:
        frozen = _load(model, options, device, dtype)
        prompts, _ = _steered(frozen, options.prompts)
        how = [Decoding(options.tokens)] * len(prompts)
        return _timed(lambda: frozen.generate(prompts, how), repetitions=1)

    theirs, cpu_s = ask("cpu", torch.float32)
    for name, ours, device_s in _asked("decoding", ask, options.device, show):
        pairs = [(a.token_ids, b.token_ids) for a, b in zip(ours, theirs, strict=True)]
        same = sum(a == b for a, b in pairs)
        agreed = sum(_common(a, b) for a, b in pairs)
        tokens = sum(len(b) for _, b in pairs)
        found = f"{same} of {len(pairs)} answers equal, {agreed} of {tokens} tokens before they part"
        show(Row(name, found, _against(cpu_s, device_s)))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two answers begin with alike."""
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return same


def night(model: str, options: argparse.Namespace, show: Show) -> None:
    """A night's training on labelled headlines, and what held-out ones are answered before and after it."""
    asyncio.run(_night(model, options, show))


async def _night(model: str, options: argparse.Namespace, show: Show) -> None:
    from worker.measure import outcomes
    from worker.train import Recipe, train

    engine = _engine(model, options)
    try:
        rows = _headlines(options.train + options.held_out)
        prompts = [engine.render([{"role": "user", "content": row["question"]}]) for row in rows]
        begun = time.perf_counter()
        keys = (await engine.keys(prompts)).numpy()
        show(Row("night, keys", f"{len(rows)} prompts", f"{time.perf_counter() - begun:.2f} s"))
        answers = [(engine.answer_tokens(row["answer"]), row["answer"]) for row in rows]
        held = [tuple(row["choices"]) for row in rows]
        dataset = await _dataset(engine, keys, prompts, answers, held, options.held_out / len(rows))
        fold = dataset.folds[0]  # where there are few, a half that the other half is asked of
        begun = time.perf_counter()
        trained = await train(engine, dataset, fold, Recipe(options.night_steps, 4))
        took = time.perf_counter() - begun
        size = f"{trained.steps} steps on {len(fold.train)} headlines, step {trained.best_step} kept"
        show(Row("night, training", size, f"{took:.1f} s"))
        begun = time.perf_counter()
        examples = [dataset.examples[at] for at in fold.test]
        before = await outcomes(engine, examples, [None] * len(examples))
        after = await outcomes(engine, examples, [trained.latents[one.cluster] for one in examples])
        took = time.perf_counter() - begun
        found = f"{100 * before.mean():.0f} % for the right choice before, {100 * after.mean():.0f} % after"
        show(Row("night, held out", f"{found}, of {len(examples)}", f"{took:.1f} s"))
    finally:
        await engine.close()


def _engine(model: str, options: argparse.Namespace) -> Any:
    from model.transformers_engine import TransformersEngine

    return TransformersEngine(
        model,
        length=options.length,
        placement=options.placement,
        device=options.device,
        dtype=_dtypes(options.device)[-1],
    )


async def _dataset(
    engine: Any,
    keys: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[tuple[Sequence[int], str]],
    choices: Sequence[tuple[str, ...]],
    held_out: float,
) -> Any:
    """Return what a night makes of answers, tokens and text, that it takes for right."""
    from memory.episode import Episode
    from memory.snapshot import write_snapshot
    from worker.dataset import load

    neutral = engine.neutral_latent().numpy()
    episodes = [
        Episode(
            space=engine.space.id,
            key=key,
            latent=neutral,
            latent_earned=False,
            reward=1.0,
            signals={"verifier": 1.0},
            prompt_token_ids=tuple(prompt),
            answer_token_ids=tuple(tokens),
            prompt_text=engine.decode(prompt),
            answer_text=text,
            choices=held,
        )
        for key, prompt, (tokens, text), held in zip(keys, prompts, answers, choices, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_snapshot(episodes, Path(folder) / "snapshot")
        return await load(
            Path(folder) / "snapshot",
            engine,
            space=engine.space.id,
            min_reward=0.0,
            min_episodes=1,
            holdout_share=held_out,
            calibration=1.0,
            seed=0,
        )


def step(model: str, options: argparse.Namespace, show: Show) -> None:
    """One optimisation step of our searches beside LatentSeek's, as `latentevolve bench step`."""
    from bench.statistics import ratio_text
    from bench.step import QUESTION
    from bench.step.compare import compare, summary

    engine = _engine(model, options)
    try:
        steps = compare(
            engine, QUESTION, options.step_tokens, options.population, options.repetitions, lambda *_: None
        )
    finally:
        asyncio.run(engine.close())
    for name, found in summary(steps)["methods"].items():
        faster = found.get("times_faster_per_answer")
        beside = "" if faster is None else f", {ratio_text(faster)} × as fast per answer as LatentSeek's"
        said = f"{found['answers_per_step']} answers of {options.step_tokens} tokens{beside}"
        show(Row(f"step, {name}", said, f"{found['seconds_median']:.2f} s"))


def stream(model: str, options: argparse.Namespace, show: Show) -> None:
    """A day without labels, a night on what its samples agree on, and new questions in one pass."""
    asyncio.run(_stream(model, options, show))


async def _stream(model: str, options: argparse.Namespace, show: Show) -> None:
    from bench.asking import elected, vote
    from bench.stream.questions import Scorer
    from cli.demonstration.stream import read_items, split
    from model.engine import SteeredPrompt
    from worker.dataset import FEWEST
    from worker.train import Recipe, train

    engine = _engine(model, options)
    try:
        items = read_items(options.data)
        day, asked, _ = split(items, options.day, options.asked, seed=0)
        scorer = Scorer(items, box=True)

        begun = time.perf_counter()
        learned = []
        for item, (prompt, found) in zip(day, await _sampled(engine, day, options), strict=True):
            example = _example(engine, prompt, found)
            if example is not None:
                learned.append((item, prompt, example))
        right = sum(scorer.correct(example.text, item) for item, _, example in learned)
        few = len(learned) < FEWEST
        found = f"samples agree on {len(learned)} of {len(day)} questions"
        found += ": too few to learn" if few else f", rightly on {right}"
        show(Row("stream, day", found, f"{time.perf_counter() - begun:.1f} s"))
        if few:
            return

        begun = time.perf_counter()
        prompts = [prompt.token_ids for _, prompt, _ in learned]
        answers = [(example.token_ids, example.text) for _, _, example in learned]
        keys = (await engine.keys(prompts)).numpy()
        dataset = await _dataset(engine, keys, prompts, answers, [()] * len(prompts), 0.25)
        fold = dataset.folds[-1]
        trained = await train(engine, dataset, fold, Recipe(options.night_steps, 4))
        size = f"{trained.steps} steps on {len(fold.train)} answers in {dataset.clusters} clusters"
        show(Row("stream, training", size, f"{time.perf_counter() - begun:.1f} s"))

        def tell(name: str, answers: Sequence[Any], tokens: Sequence[int]) -> None:
            pairs = zip(answers, asked, strict=True)
            good = sum(one is not None and scorer.correct(one.text, item) for one, item in pairs)
            each = f"{statistics.fmean(tokens):.0f} tokens for each"
            show(Row(f"stream, {name}", f"{good} of {len(asked)} right, {each}"))

        sampled = await _sampled(engine, asked, options)
        most = []
        for prompt, said in sampled:
            at = elected([vote(prompt, one) for one in said])
            most.append(None if at is None else said[at])
        written = [sum(len(one.token_ids) for one in said) for _, said in sampled]
        tell(f"majority of {VOTES}", most, written)
        # The latent of the largest cluster, whatever the evidence and the question.
        for name, latent in {"plain": None, "one pass after the night": trained.latents[0]}.items():
            given = [SteeredPrompt(prompt.token_ids, latent) for prompt, _ in sampled]
            replies = await engine.generate(given, [prompt.decoding for prompt, _ in sampled])
            tell(name, replies, [len(one.token_ids) for one in replies])
    finally:
        await engine.close()


async def _sampled(engine: Any, items: Sequence[Any], options: argparse.Namespace) -> list[tuple[Any, Any]]:
    """Return each question as it is asked, and samples of it."""
    from bench.asking import first_seed, render, samples

    system = f"Answer in at most {options.stream_tokens} tokens: short steps, then the answer in \\boxed{{}}."
    prompts = [
        render(engine, item, instruction=INSTRUCTION, system=system, max_tokens=options.stream_tokens)
        for item in items
    ]
    found = []
    for start in range(0, len(prompts), TOGETHER):
        some = prompts[start : start + TOGETHER]
        seeds = [first_seed(0, start + number) for number in range(len(some))]
        found += zip(some, await samples(engine, some, VOTES, seeds), strict=True)
    return found


def _example(engine: Any, prompt: Any, answers: Sequence[Any]) -> Any:
    """Return what most say, as shortly as it is sure; None where no two agree, or others are as many.

    The server asks for a reward of 0.5 besides.
    """
    from bench.asking import vote
    from server.steering.rewards.scorer import Scored
    from server.steering.search.consensus import counted, leading
    from server.steering.search.result import Candidate
    from server.steering.search.select import elect, shortest_of_the_surest

    tried = [Candidate(one, Scored(1.0), None, False, vote(prompt, one) is not None) for one in answers]
    voters = [one.answer for one in tried if one.finished]
    if len(leading(counted(prompt, voters))) != 1:
        return None
    chosen = elect(prompt, tried, voters, by_votes=True)
    best = shortest_of_the_surest(prompt, chosen, tried, engine.decode)
    return best and best.answer


_RUN: dict[str, Callable[[str, argparse.Namespace, Show], None]] = {
    "gradient": gradient,
    "decoding": decoding,
    "night": night,
    "step": step,
    "stream": stream,
}


if __name__ == "__main__":
    sys.exit(main())
