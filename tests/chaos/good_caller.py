"""`python -m tests.chaos.good_caller ADDRESS KEY SECONDS`: asks for the models every 50 ms, and prints what came.

A process of its own, so that what it measures is the platform's time and not that of the load's client.
"""

import asyncio
import http.client
import json
import subprocess
import sys
import time
from typing import NamedTuple

from tests.kit.platform import REPOSITORY, Platform

_EVERY_SECONDS = 0.05


class Asked(NamedTuple):
    """One `GET /v1/models`."""

    status: int  # 0: no answer
    seconds: float


async def asked(platform: Platform, seconds: float) -> list[Asked]:
    """What a caller with a key of its own gets during that time."""
    address = platform.facts["base_url"].split("/")[2]
    command = (sys.executable, "-m", "tests.chaos.good_caller", address, platform.facts["api_key"], str(seconds))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=REPOSITORY)
    output, _ = await process.communicate()
    return [Asked(*each) for each in json.loads(output)]


def main(address: str, key: str, seconds: float) -> None:
    connection = http.client.HTTPConnection(address, timeout=30)
    answers = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        status = 0
        try:
            connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        except OSError:
            connection.close()
        answers.append(Asked(status, time.monotonic() - began))
        time.sleep(_EVERY_SECONDS)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
