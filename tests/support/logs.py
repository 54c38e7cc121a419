"""Reading a job's log through `run_output`, as a client does."""

from __future__ import annotations

import base64
import re

from mcp import Client

_TRAILER = re.compile(
    r"\[(?P<job>\S+) .*\| bytes (?P<start>\d+)-(?P<next>\d+) of (?P<size>\d+) \| (?P<rest>.*)\]"
)


async def piece(client: Client, job: str, offset: int) -> tuple[bytes, bool]:
    """Bytes of a job's log from *offset* on, and whether that was its end.

    Raises:
        ConnectionError: the server said that it cannot answer now.
    """
    arguments = {"job_id": job, "offset": offset, "encoding": "base64"}
    result = await client.call_tool("run_output", arguments)
    if result.is_error:
        raise ConnectionError(str(result.content))
    *lines, last = result.content[0].text.splitlines()  # type: ignore[union-attr]  # a text tool
    trailer = _TRAILER.fullmatch(last)
    assert trailer, last
    data = base64.b64decode("".join(lines))
    assert (int(trailer["start"]), int(trailer["next"])) == (offset, offset + len(data))
    return data, trailer["rest"] == "end"
