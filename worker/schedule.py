"""Nights by the clock.

Owns the request that the schedule leads to. The gateway decides whether a night starts; when one is due
is `worker/app.py`'s.
"""

import logging

import httpx

from config.loopback import is_loopback
from config.settings import START_NIGHT_TIMEOUT_S, Settings

logger = logging.getLogger(__name__)


def request_night(settings: Settings) -> bool:
    """Ask the gateway for a night and return whether it took it; why not is logged."""
    url = f"{settings.url}/v1/consolidations"
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        answer = httpx.post(
            url,
            json={"trigger": "schedule"},
            headers=headers,
            timeout=START_NIGHT_TIMEOUT_S,
            trust_env=not is_loopback(url),  # a proxy would look for the gateway on its own machine
        )
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
