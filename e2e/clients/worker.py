"""The official worker, as its documentation starts it.

    worker.py WORKDIR [MAX_IDLE]

Reads ANTHROPIC_BASE_URL, ANTHROPIC_ENVIRONMENT_ID and ANTHROPIC_ENVIRONMENT_KEY. Runs until it
is killed.
"""

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
        max_idle=float(sys.argv[2]) if len(sys.argv) > 2 else 60.0,
    )
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
