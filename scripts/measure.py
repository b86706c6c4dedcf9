"""Measure what the README says: start-up, latency of each effort, memory of each process.

    .venv/bin/python scripts/measure.py [--requests 20]

Starts the whole tree on an empty temporary memory, sends classification requests one at a time, and
prints one JSON document. Run it on an otherwise idle machine.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=20, help="requests per effort")
    count = parser.parse_args().requests
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as data, open(Path(data, "out"), "wb") as out:
        started = time.monotonic()
        command = [sys.executable, "-m", "cli.main", "serve", "--port", str(port), "--data-dir", data]
        tree = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, tree)
            found = {"ready_s": round(time.monotonic() - started, 1), "cores": os.cpu_count()}
            found["idle_memory_mib"] = memory_mib(tree.pid)
            found["latency_s"] = latencies(url, count)
            found["memory_mib"] = memory_mib(tree.pid)
        finally:
            tree.send_signal(signal.SIGINT)
            tree.wait(90)
    print(json.dumps(found, indent=2))


def wait_until_ready(url: str, tree: subprocess.Popen[bytes]) -> None:
    while True:
        if tree.poll() is not None:
            sys.exit(f"serve ended with {tree.returncode}; run it by hand to see why")
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)


def latencies(url: str, count: int) -> dict[str, dict[str, float]]:
    """Return median and 90th percentile of the whole request by effort, in seconds."""
    lines = (ROOT / "examples" / "topics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found: dict[str, dict[str, float]] = {}
    with httpx.Client(base_url=url, timeout=300) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        runs = [("none", "none", {}), ("medium", "medium", {}), ("high", "high", {})]
        runs += [("low", "low", {}), ("gradient, 2 steps", "medium", {"refiner": "gradient"})]
        for name, effort, extra in runs:
            times = []
            for row in rows[: count + 1]:
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": row["question"]}],
                    "max_tokens": 16,
                    "temperature": 0,
                    "structured_outputs": {"choice": row["choices"]},
                    "latent": {"effort": effort, **extra},
                }
                begun = time.monotonic()
                client.post("/v1/chat/completions", json=body).raise_for_status()
                times.append(time.monotonic() - begun)
            times = sorted(times[1:])  # the first one warms up
            found[name] = {
                "p50": round(statistics.median(times), 3),
                "p90": round(times[int(0.9 * (len(times) - 1))], 3),
            }
    return found


def memory_mib(pid: int) -> dict[str, int]:
    """Return the proportional set size of each process of the tree (shared pages counted once)."""
    found: dict[str, int] = {}
    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        try:
            name = " ".join(process.cmdline())[:60] or process.name()
            found[f"{process.pid} {name}"] = process.memory_full_info().pss >> 20
        except psutil.Error:
            continue
    found["total"] = sum(found.values())
    return found


if __name__ == "__main__":
    main()
