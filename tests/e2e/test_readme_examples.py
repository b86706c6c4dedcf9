"""The README's examples work as they stand there."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.processes import HTTP, Gateway

README = (Path(__file__).parents[2] / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def test_curl_example(served: Gateway) -> None:
    found = re.search(r"curl -s (\S+) .*?-d '(.*?)'", README, re.DOTALL)
    assert found is not None
    url, body = found.groups()
    answer = HTTP.post(url.replace(ADDRESS, served.url), json=json.loads(body))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def test_python_example(served: Gateway) -> None:
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    assert ADDRESS in found.group(1)
    code = found.group(1).replace(ADDRESS, served.url)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    text, mode = run.stdout.strip().rsplit("\n", 1)
    assert text
    assert mode.split()[0] in {"plain", "voted", "prior", "calibrated"}


def test_command_line_answers_and_says_what_steering_did(served: Gateway) -> None:
    command = [sys.executable, "-m", "cli.main", "ask", "Name a colour.", "--url", served.url]
    command += ["--effort", "low", "--max-tokens", "8", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["headers"]["effort"] == "low"
