"""Who may call an admin method: the scope that the contract declares for it, checked before the method runs.

A scope of one account ("admin:read", "admin:write") reaches the caller's own account only (Caller.account_filter).
"""

from common import admin_api, names
from common.errors import Reason, UplionError
from control.requests.caller import Caller


def admit(method: str, caller: Caller) -> None:
    """Raises PERMISSION_DENIED unless the caller has the method's scope, or when the method declares none."""
    least = admin_api.scopes().get(method)
    if caller.operator and least is not None:
        return
    if least is None or least not in caller.scopes:
        scope = least or names.SCOPE_ADMIN
        raise UplionError(Reason.PERMISSION_DENIED, f'This needs a key with the scope "{scope}".', scope=scope)
