"""Nights by the clock.

Owns the cron expression and the request that it leads to. The gateway decides whether a night starts.
"""

import logging

from celery.schedules import ParseException, crontab

from config.settings import Settings

logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0
"""The gateway writes the snapshot before it answers."""


def cron(expression: str) -> crontab | None:
    """Return the schedule of five cron fields, UTC; None for an empty one or `never`.

    Raises:
        ValueError: it is no cron expression.
    """
    if expression.strip().lower() in ("", "never"):
        return None
    try:
        return crontab.from_string(expression)
    except (ParseException, ValueError) as error:
        raise ValueError(
            f"LATENTEVOLVE_NIGHT_CRON is {expression!r}, "
            f"expected five cron fields such as '0 3 * * *': {error}"
        ) from error


def request_night(settings: Settings) -> bool:
    """Ask the gateway for a night and return whether it took it; why not is logged."""
    import httpx  # not needed by beat and the idle worker, which read the schedule only

    url = f"{settings.url}/v1/consolidations"
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        answer = httpx.post(url, json={"trigger": "schedule"}, headers=headers, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        logger.warning("no scheduled night: the gateway at %s does not answer (%s)", settings.url, error)
        return False
    if answer.status_code == httpx.codes.CONFLICT:
        logger.info("no scheduled night: one is under way already")
        return False
    if answer.is_error:
        logger.warning("no scheduled night: %s answered %d: %s", url, answer.status_code, answer.text[:500])
        return False
    logger.info("scheduled night %s is %s", answer.json()["id"], answer.json()["state"])
    return True
