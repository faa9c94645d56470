"""The caller of an admin method, and which accounts it may reach."""

from __future__ import annotations  # grpc's classes are generic in the stubs only

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from common import names
from common.admin_api import ADMIN_SCOPES
from common.errors import Reason, UplionError
from rpc.identity import caller

if TYPE_CHECKING:
    import grpc.aio

    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls an admin method, after its scope was checked."""

    account: str
    key: str
    scopes: frozenset[str]

    @classmethod
    def current(cls) -> Self:
        """Of the method that runs; the method's scope was checked before."""
        identity = caller()
        return cls(identity.account, identity.key, frozenset(identity.scopes))

    @property
    def operator(self) -> bool:
        """The platform's operator reaches every account."""
        return names.SCOPE_ADMIN in self.scopes

    @property
    def within(self) -> str | None:
        """The only account whose objects this caller can reach; None: all accounts."""
        return None if self.operator else self.account

    @property
    def grantable(self) -> list[str] | None:
        """The scopes that a key of this caller's making may have: its own, and "inference"; None: all there are.

        Whoever may make keys for an account may use its models: that is what such keys are made for.
        """
        if self.operator:
            return None
        return [names.SCOPE_INFERENCE, *(scope for scope in ADMIN_SCOPES if scope in self.scopes)]

    def account_filter(self, asked: str) -> str | None:
        """The account a list is about, None for all; NOT_FOUND for one that this caller cannot reach."""
        if self.operator:
            return asked or None
        if asked and asked != self.account:
            raise UplionError(Reason.NOT_FOUND, f"There is no account {asked!r}.", param="account")
        return self.account

    def require_operator(self, param: str, what: str) -> None:
        """Raises PERMISSION_DENIED for anyone but the operator; `what` begins the sentence."""
        if not self.operator:
            raise UplionError(
                Reason.PERMISSION_DENIED, f'{what} needs a key with the scope "{names.SCOPE_ADMIN}".', param=param
            )
