"""The hooks into vLLM are checked at start-up against a reference (issue: held by tests, 3)."""

from tests.e2e.processes import Gateway


def test_checks_ran_on_the_real_model_and_passed(served: Gateway) -> None:
    ready = served.get("/readyz")
    checks = {check["name"]: check for check in ready["checks"]}
    assert ready["ready"]
    assert ready["steering"]
    assert set(checks) == {"mixed-prompt", "key", "twin-gradient"}
    assert all(check["ok"] for check in checks.values()), checks


def test_key_hook_equals_the_reference_forward(served: Gateway) -> None:
    check = next(c for c in served.get("/readyz")["checks"] if c["name"] == "key")
    assert check["value"] > 0.999


def test_twin_gradient_agrees_with_finite_differences(served: Gateway) -> None:
    check = next(c for c in served.get("/readyz")["checks"] if c["name"] == "twin-gradient")
    assert check["value"] > 0.9
