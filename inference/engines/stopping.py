"""Stop texts: found across token borders; text that may be the beginning of one is held back.

Whole tokens are held back, never parts of one, so that what was delivered is always exactly the text of the token ids
delivered with it: a later attempt can resume from those ids alone.
"""


class StopScanner:
    """Scans the text of one choice for its stop texts."""

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held: list[tuple[str, list[int]]] = []
        self.stopped = False

    def push(self, text: str, token_ids: list[int]) -> tuple[str, list[int]]:
        """Takes the next text and its tokens; returns what may be delivered now, up to the stop text if it came."""
        self._held.append((text, token_ids))
        joined = "".join(part for part, _ in self._held)
        found = min((at for at in map(joined.find, self._stops) if at >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            return joined[:found], self._release(len(self._held))[1]
        keep_from = len(joined) - self._possible_start(joined)
        ready, position = 0, 0
        for part, _ in self._held:
            position += len(part)
            if position > keep_from:
                break
            ready += 1
        return self._release(ready)

    def flush(self) -> tuple[str, list[int]]:
        """What is still held back, when the choice ends without a stop text."""
        return self._release(len(self._held))

    def _possible_start(self, text: str) -> int:
        """How long the longest end of `text` is that begins a stop text."""
        longest = min(max(map(len, self._stops), default=0) - 1, len(text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, count: int) -> tuple[str, list[int]]:
        released, self._held = self._held[:count], self._held[count:]
        return "".join(text for text, _ in released), [token for _, ids in released for token in ids]
