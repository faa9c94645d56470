"""Dead letters: messages of a stream that no consumer can digest, as they are published into DEAD."""

from typing import NamedTuple

from nats.js import api

from common import names
from messaging.pull import Message

_MOST_BYTES = 768 << 10  # with its headers it must stay under the 1 MiB that NATS takes
_REASON_CHARACTERS = 200


class DeadLetter(NamedTuple):
    """What is published, before the message itself is acknowledged."""

    subject: str
    payload: bytes
    headers: dict[str, str]


def dead_letter(stream: str, message: Message, reason: str) -> DeadLetter:
    """`reason` must hold nothing of the content. A payload that does not fit is cut; its stream may have the whole."""
    sequence = message.metadata.sequence.stream
    headers = {
        api.Header.MSG_ID.value: f"{stream}.{sequence}",
        names.HEADER_DEAD_REASON: " ".join(reason.split())[:_REASON_CHARACTERS],
        names.HEADER_DEAD_SUBJECT: message.subject,
        names.HEADER_DEAD_SEQUENCE: str(sequence),
    }
    return DeadLetter(names.dead_subject(stream), message.data[:_MOST_BYTES], headers)
