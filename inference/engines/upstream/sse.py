"""Server-sent events, in every form that upstreams were seen to send."""

from collections.abc import Iterator

_LONGEST_EVENT_BYTES = 4 * 1024 * 1024


class SseTooLongError(Exception):
    """An event is longer than is reasonable."""


class SseReader:
    """Bytes in, as they come; the data of each event out.

    Takes `data:` with or without a space, LF and CRLF, comments, several data lines, and frames split anywhere.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[str] = []
        self._size = 0

    def push(self, chunk: bytes) -> Iterator[str]:
        """The events that `chunk` completes."""
        self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > _LONGEST_EVENT_BYTES:
            raise SseTooLongError
        for line in lines:
            yield from self._line(line.removesuffix(b"\r"))

    def end(self) -> Iterator[str]:
        """The last event, when the stream ends without an empty line."""
        yield from self._line(self._buffer.removesuffix(b"\r"))
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[str]:
        if line.startswith(b"data:"):
            text = line[5:].decode("utf-8", "replace")
            self._size += len(line)
            if self._size > _LONGEST_EVENT_BYTES:
                raise SseTooLongError
            self._data.append(text.removeprefix(" "))
        elif not line and self._data:
            data, self._data, self._size = "\n".join(self._data), [], 0
            yield data
