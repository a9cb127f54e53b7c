"""The official Python worker, as its documentation starts it: `official_worker.py WORKDIR`."""

import asyncio
import os
import sys

from anthropic import AsyncAnthropic


async def main():
    client = AsyncAnthropic(api_key="unused by a worker")
    worker = client.beta.environments.work.worker(
        environment_id=os.environ["ANTHROPIC_ENVIRONMENT_ID"],
        environment_key=os.environ["ANTHROPIC_ENVIRONMENT_KEY"],
        workdir=sys.argv[1],
    )
    await worker.run()


asyncio.run(main())
