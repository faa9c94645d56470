"""The cache of key records that the authz processes share in Valkey. It may lose records, and never raises."""

import logging

import msgspec

from authz.credentials.key_record import CachedRecord
from common import names
from storage.valkey import Commands, ValkeyError

logger = logging.getLogger(__name__)
_decoder = msgspec.msgpack.Decoder(CachedRecord)
_encoder = msgspec.msgpack.Encoder()


class ValkeyKeyCache:
    """Records by key id, and for each account the set of its ids, so that an account can be dropped as a whole."""

    def __init__(self, valkey: Commands, ttl_seconds: float) -> None:
        self._valkey = valkey
        self._ttl_seconds = max(1, round(ttl_seconds))

    async def get(self, key_id: str) -> CachedRecord | None:
        try:
            found = await self._valkey.call("GET", names.key_record_key(key_id))
            return None if found is None else _decoder.decode(found)
        except (ValkeyError, msgspec.DecodeError):
            return None

    async def put(self, cached: CachedRecord) -> None:
        record = cached.record
        members = names.account_keys_key(record.account)
        try:
            await self._valkey.call("SADD", members, record.id)  # first: so every record can be found for its account
            await self._valkey.call("EXPIRE", members, 2 * self._ttl_seconds)
            await self._valkey.call(
                "SET", names.key_record_key(record.id), _encoder.encode(cached), "EX", self._ttl_seconds
            )
        except ValkeyError:
            logger.debug("a key record was not cached")

    async def drop(self, kind: str, name: str) -> None:
        try:
            ids = [name]
            if kind == "account":
                ids = [each.decode() for each in await self._valkey.call("SMEMBERS", names.account_keys_key(name))]
            if ids:
                await self._valkey.call("DEL", *(names.key_record_key(each) for each in ids))
        except ValkeyError as problem:
            logger.warning("a shared key record was not dropped", extra={"problem": repr(problem)})
