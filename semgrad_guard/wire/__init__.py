"""The JSON forms of Exchange, Score, Confidence, Decision and Record: one for files, logs, the review queue and HTTP.

`x_fields` returns the JSON values of a value, `x_from_fields` the value again. A form of its own (a record, an attempt,
an exchange, a score) says its `version`. Everything from version 1 on is read: what version 0.1 wrote, without a number
in most places, stays readable (`tests/samples`).

A score is the same object wherever it is written: in the attempts of a log, in an exchange, in a document of the review
queue, in a message, and under `score` in a row of scored answers. The forms around it differ for these reasons:

* The top level of a log line is flat (`summary_fields`): it is what trace metadata and span attributes hold, one plain
  value a key. There, `score` is the number alone.
* A log has no token ids and, where `log_text` is false, no texts; see `semgrad_guard.wire.records`. An exchange from
  `exchange_fields` has both.
* A document of the review queue (`semgrad_guard.review.Document`) is an exchange with what reviewers are shown: the
  confidence and the rule, but not the parameters of the step, and the earlier attempts in short.
"""

from semgrad_guard.wire.forms import (
    VERSION,
    ContributionForm,
    ExchangeForm,
    FailureForm,
    FingerprintForm,
    Frozen,
    MessageForm,
    PassageForm,
    ScoreForm,
    SpanForm,
)
from semgrad_guard.wire.reading import TooLargeError, body_of, lines_of, read_json, whole_body
from semgrad_guard.wire.records import (
    SUMMARY,
    RecordFieldsError,
    answered_attempt,
    attempt_fields,
    attempt_from_fields,
    deciding_error,
    decision_fields,
    decision_from_fields,
    record_fields,
    record_from_fields,
    summary_fields,
)
from semgrad_guard.wire.scoring_api import (
    MAX_EXCHANGES,
    ClaimForm,
    DecisionForm,
    ExchangeToScore,
    ModelList,
    ProblemForm,
    ScoreReply,
    ScoreRequest,
    ScoreResult,
    ServedModel,
    error_of,
    served_findings,
    served_score,
)
from semgrad_guard.wire.values import (
    MAX_DEPTH,
    RunRef,
    WireError,
    confidence_fields,
    confidence_from_fields,
    exchange_fields,
    exchange_from_fields,
    failure_fields,
    failure_from_fields,
    number,
    plain,
    score_fields,
    score_from_fields,
    signals_fields,
    user_metadata,
)

__all__ = [
    "MAX_DEPTH",
    "MAX_EXCHANGES",
    "SUMMARY",
    "VERSION",
    "ClaimForm",
    "ContributionForm",
    "DecisionForm",
    "ExchangeForm",
    "ExchangeToScore",
    "FailureForm",
    "FingerprintForm",
    "Frozen",
    "MessageForm",
    "ModelList",
    "PassageForm",
    "ProblemForm",
    "RecordFieldsError",
    "RunRef",
    "ScoreForm",
    "ScoreReply",
    "ScoreRequest",
    "ScoreResult",
    "ServedModel",
    "SpanForm",
    "TooLargeError",
    "WireError",
    "answered_attempt",
    "attempt_fields",
    "attempt_from_fields",
    "body_of",
    "confidence_fields",
    "confidence_from_fields",
    "deciding_error",
    "decision_fields",
    "decision_from_fields",
    "error_of",
    "exchange_fields",
    "exchange_from_fields",
    "failure_fields",
    "failure_from_fields",
    "lines_of",
    "number",
    "plain",
    "read_json",
    "record_fields",
    "record_from_fields",
    "score_fields",
    "score_from_fields",
    "served_findings",
    "served_score",
    "signals_fields",
    "summary_fields",
    "user_metadata",
    "whole_body",
]
