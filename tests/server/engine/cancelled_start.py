"""Starts vLLM, gives up as soon as its engine process is born, and says which children are left.

A process of its own: when vLLM's constructor fails, it leaves sockets to the garbage collector.
"""

import asyncio
import multiprocessing
import sys

from config.settings import Settings
from server.engine.launch import launch


async def main(model_path: str) -> None:
    settings = Settings(
        _env_file=None, model="small", max_model_len=512, kv_cache_gib=0.25, gradient_worker=False
    )

    async def start() -> None:
        async with launch(settings, model_path):
            sys.exit("started before it was cancelled")

    starting = asyncio.create_task(start())
    while not multiprocessing.active_children() and not starting.done():  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    born = [child.pid for child in multiprocessing.active_children()]
    starting.cancel()
    (outcome,) = await asyncio.gather(starting, return_exceptions=True)
    left = [child.pid for child in multiprocessing.active_children()]
    print(f"outcome={type(outcome).__name__} born={len(born)} left={left}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
