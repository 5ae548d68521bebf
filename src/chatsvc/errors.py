"""Every error that chatsvc raises on purpose.

An error carries what the caller may see: a stable ``code``, and a public ``message`` that names the remedy and never
contains a secret, a prompt or a traceback. :mod:`chatsvc.http.wire.problems` maps each class to its HTTP status.

::

    ChatsvcError
    ├── RequestError                    the caller can fix it
    │   ├── InvalidRequest              400, `param` names the field
    │   │   └── ContextLengthExceeded   400, code context_length_exceeded
    │   ├── AuthenticationFailed        401, one message for every cause
    │   ├── PermissionRefused           403
    │   ├── NotFound                    404, does not exist or is not the caller's
    │   │   ├── ModelNotFound           404, code model_not_found
    │   │   └── ConversationDeleted     404, code conversation_deleted
    │   ├── MethodNotAllowed            405
    │   ├── Conflict                    409
    │   ├── BodyTooLarge                413
    │   ├── UnsupportedMediaType        415
    │   ├── LimitExceeded               429, has retry_after_s and the x-ratelimit values
    │   └── ClientGone                  499, seen in the log only
    ├── Unavailable                     503, has retry_after_s
    │   ├── Overloaded                  the queue is full (type overloaded_error)
    │   ├── Draining                    shutting down, or changing the model
    │   ├── EngineUnavailable           no model is ready: starting, crashed or stalled
    │   ├── AuditUnavailable            audit records cannot be made durable
    │   ├── StoreUnavailable            database or Redis down
    │   │   └── IdentityUnavailable     directory or identity provider down
    │   └── DeadlineExceeded            the generation reached its wall-clock limit
    ├── ModelFailed                     500, the model computed NaN or infinity
    └── OperatorError                   exit code 3 on the command line
        ├── ConfigurationInvalid        all problems of a configuration at once
        └── ModelRefused                the model's files do not verify
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class ChatsvcError(Exception):
    """Base class. ``message`` is public."""

    code: str | None = None
    message: str = "Something went wrong."

    def __init__(self, message: str | None = None, *, code: str | None = None) -> None:
        self.message = message if message is not None else self.message
        self.code = code if code is not None else self.code
        super().__init__(self.message)


class RequestError(ChatsvcError):
    """An error that the caller can fix."""


class InvalidRequest(RequestError):
    """400. ``param`` is a path such as ``messages[0].role``; None if the body is not JSON."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """400: prompt and max_tokens do not fit the model's context."""

    code = "context_length_exceeded"


class AuthenticationFailed(RequestError):
    """401. The public message is the same for all causes; ``reason`` goes to the log only."""

    code = "invalid_token"
    message = "Authentication failed: send a valid access token or API key as 'Authorization: Bearer …'."

    def __init__(self, reason: str, *, message: str | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.reason = reason


class PermissionRefused(RequestError):
    """403: the address is not on the allow-list, or a scope is missing. ``reason`` goes to the log only."""

    code = "permission_denied"
    message = "Not allowed: your address is not on the allow-list, or your account lacks the scope."

    def __init__(self, reason: str, *, message: str | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.reason = reason


class NotFound(RequestError):
    """404: it does not exist, or it is not the caller's; the answer does not tell which."""

    code = "not_found"
    message = "Not found; /openapi.json lists all paths."


class ModelNotFound(NotFound):
    """404: the request names a model that is not served."""

    code = "model_not_found"
    message = "This model is not served here; GET /v1/models lists the models, and 'model' may be left out."
    param = "model"


class ConversationDeleted(NotFound):
    """404: the conversation was deleted while an answer was generated for it."""

    code = "conversation_deleted"
    message = "The conversation was deleted while this answer was running; ask again without conversation_id."


class MethodNotAllowed(RequestError):
    """405."""

    code = "method_not_allowed"
    message = "This path does not support that method; the Allow header lists those it supports."


class Conflict(RequestError):
    """409: it exists already, or it was changed meanwhile."""

    code = "conflict"


class BodyTooLarge(RequestError):
    """413."""

    code = "body_too_large"
    message = "The request body is too large; send a shorter one."


class UnsupportedMediaType(RequestError):
    """415."""

    code = "unsupported_media_type"
    message = "Send the body as 'Content-Type: application/json'."


class LimitExceeded(RequestError):
    """429: the caller's rate, quota or number of requests at a time is used up.

    ``headers`` holds the ``x-ratelimit-*`` values; ``Retry-After`` is ``retry_after_s``, clamped to 1 to 120.
    """

    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})


class ClientGone(RequestError):
    """499: the client closed the connection. The status appears in the log only."""

    code = "client_gone"
    message = "The client closed the connection."


class Unavailable(ChatsvcError):
    """503. ``Retry-After`` is ``retry_after_s``, clamped to 1 to 120."""

    code = "service_unavailable"
    message = "The service cannot answer at the moment; try again."

    def __init__(self, message: str | None = None, *, retry_after_s: float = 5, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """503 of type overloaded_error: the queue is full."""

    code = "queue_full"
    message = "Too many requests are waiting; try again after the time in Retry-After."


class Draining(Unavailable):
    """503: shutting down, or changing the model."""

    code = "draining"
    message = "The service is shutting down or changing its model; try again."


class EngineUnavailable(Unavailable):
    """503: no model is ready."""

    code = "engine_unavailable"
    message = "The model is not ready; try again."


class AuditUnavailable(Unavailable):
    """503: audit records cannot be made durable, so acts that need one are refused."""

    code = "audit_unavailable"
    message = "The audit log cannot be written, so acts that must be recorded are refused; try again later."


class StoreUnavailable(Unavailable):
    """503: database or Redis down."""

    code = "store_unavailable"
    message = "The database cannot be reached; try again."


class IdentityUnavailable(StoreUnavailable):
    """503: directory or identity provider down."""

    code = "identity_unavailable"
    message = "The service that checks logins cannot be reached; try again."


class ModelFailed(ChatsvcError):
    """500: the model computed NaN or infinity for this request; no other request is affected."""

    code = "model_failed"
    message = (
        "The model computed numbers that are not finite, so there is no answer to this prompt; "
        "another prompt may have one. Tell your administrator to run: chatsvc model verify"
    )


class DeadlineExceeded(Unavailable):
    """503: the generation reached its wall-clock limit."""

    code = "deadline_exceeded"
    message = "The answer took longer than the configured deadline; ask for fewer tokens or try again later."


class OperatorError(ChatsvcError):
    """Something an operator must fix; exit code 3 on the command line."""


class ConfigurationInvalid(OperatorError):
    """All problems of a configuration at once, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("The configuration has problems:\n" + "\n".join(f"  - {p}" for p in problems))
        self.problems = list(problems)


class ModelRefused(OperatorError):
    """The model's files do not verify. The message is the same for all causes."""

    code = "model_refused"
    message = "The model's files do not match their signed manifest or key, so they are not loaded."
