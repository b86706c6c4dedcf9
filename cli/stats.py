"""`latentevolve stats`: what is remembered, and how often it helps.

Owns the command; counting is the gateway's.
"""

from typing import Any

from cli.experiments import show_experiment
from cli.gateway import Gateway
from cli.options import ApiKey, Json, Url, load_settings
from cli.screen import Screen, bar


def stats(url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show counts, rewards, the hit rate and the prior's versions."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        memory = gateway.get("/v1/memory/stats")
        priors = gateway.get("/v1/priors")
        experiments = gateway.get("/v1/experiments")["data"]
    screen.document({"memory": memory, "priors": priors, "experiments": experiments})
    show_stats(screen, memory, priors)
    for experiment in experiments:
        if experiment["share"] or experiment["switch"]["steering"] == "off":
            screen.line()
            show_experiment(screen, experiment)


def show_stats(screen: Screen, memory: dict[str, Any], priors: dict[str, Any]) -> None:
    """Write the statistics of memory and priors for a person."""
    requests = memory["requests"]
    by_mode = ", ".join(f"{mode} {count}" for mode, count in sorted(requests["by_mode"].items()))
    screen.line(
        f"requests  {requests['total']}, of them {requests['steered']} steered ({by_mode or 'none yet'})"
    )
    screen.line(f"hit rate  {percent(memory['hit_rate'])} of the requests that looked into memory")
    exploring = memory["exploring"]
    screen.line(
        f"exploring {exploring['running']} now, {exploring['waiting']} wait; "
        f"{exploring['tokens_last_hour']} tokens within the last hour"
    )
    screen.line(f"writes    {memory['pending_writes']} pending, {memory['dropped_writes']} dropped")
    if refused := memory.get("refused_writes"):
        screen.line(f"          {refused} refused: the disk is nearly full", "yellow")
    gone = [f"{memory.get(f'{why}_episodes', 0)} {why}" for why in ("expired", "evicted")]
    if any(memory.get(f"{why}_episodes") for why in ("expired", "evicted")):
        screen.line(f"gone      {', '.join(gone)} since the start")
    versions = [str(entry["version"]) for entry in priors["versions"]]
    pinned = ", pinned by hand" if priors.get("pinned") else ""
    screen.line(
        f"priors    {len(versions)} ({', '.join(versions) or 'none'});"
        f" active: {priors['active'] or 'none'}{pinned}"
    )
    for row, found in memory["prior"]["rows"].items():
        screen.line(
            f"          {row} {found['standing']}: {found['mean']:+.2f} on {found['n']} prompts,"
            f" e-value {found['e_value']:.3g} for it, {found['e_against']:.3g} against it"
        )
    for space, found in memory["spaces"].items():
        served = ", served now" if space == memory["space"] else ""
        screen.line()
        prompts = f", whose prompts came {found['seen']} times" if found.get("seen") else ""
        screen.line(f"space {space}{served}: {found['episodes']} episodes{prompts}", "bold")
        if found["episodes"]:
            screen.line(
                f"reward mean {found['reward_mean']:.3f}, from {found['oldest']} to {found['newest']}"
            )
            _histogram(screen, found["reward_histogram"])


def percent(share: float | None) -> str:
    """Return a share as a percentage, a dash when there is none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _histogram(screen: Screen, counts: list[int]) -> None:
    most = max(counts) or 1
    for tenth, count in enumerate(counts):
        screen.line(f"  {tenth / 10:.1f}–{(tenth + 1) / 10:.1f}  {count:>6}  {bar(count / most)}".rstrip())
