"""Builds the stages of a guard from a policy."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from semgrad_guard.extras import Lazy
from semgrad_guard.flow import Confidence
from semgrad_guard.guard.question_run import Parts
from semgrad_guard.guard.readiness import Given, check_ready, ready_policy
from semgrad_guard.guard.thresholds import resolver
from semgrad_guard.guard.verdict_loop import EarlierVerdicts, pass_verdicts_on
from semgrad_guard.policy import Policy, PolicyDecider, PolicyWatcher
from semgrad_guard.policy.model import FUSED
from semgrad_guard.routing.deadline import Deadline, call_before
from semgrad_guard.signals import FREE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from semgrad_guard.calibration import Profile
    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Exchange, Fingerprint, Score
    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.policy.model import ScorerSettings
    from semgrad_guard.policy.review import ReviewSettings
    from semgrad_guard.ports import Calibrator, Scorer, Sink
    from semgrad_guard.review import QueueSettings, SqlReviewQueue
    from semgrad_guard.review.client import ReviewClient

    PolicySource = str | Path | Mapping[str, object] | Policy | None


class LazyScorer:
    """A `Scorer` whose model is loaded when the first answer is scored.

    A time limit includes loading. If it ends before loading does, loading continues for later answers.
    """

    def __init__(self, name: str, make: Callable[[], Scorer]) -> None:
        """Store the model's name and the function that loads the scorer."""
        self.name = name
        self._scorer = Lazy(make)

    def load(self) -> Scorer:
        """Load the scorer, if necessary, and return it."""
        return self._scorer.get()

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return the scorer's fingerprint; see `Scorer.fingerprint`."""
        return self.load().fingerprint(proxy=proxy)

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Score one answer; see `Scorer.score`.

        Raises:
            TimeoutError: loading took longer than `timeout_s` seconds.
        """
        deadline = Deadline.after(timeout_s)
        scorer = self._loaded_before(deadline)
        return scorer.score(exchange, timeout_s=deadline.remaining_s(), cancel=cancel)

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        """Score several answers; see `Scorer.score_batch`.

        Raises:
            TimeoutError: loading took longer than `timeout_s` seconds.
        """
        deadline = Deadline.after(timeout_s)
        scorer = self._loaded_before(deadline)
        return scorer.score_batch(exchanges, timeout_s=deadline.remaining_s(), cancel=cancel)

    def _loaded_before(self, deadline: Deadline) -> Scorer:
        if self._scorer.is_made:
            return self.load()
        return call_before(deadline, self.load, f"loading {self.name}")


_log = logging.getLogger("semgrad_guard")


def queue_of(review: ReviewSettings) -> SqlReviewQueue | ReviewClient:
    """Return the queue that a policy names; it connects at first use.

    Raises:
        ReviewError: the URL is not that of a queue.
        MissingExtraError: the database driver or the web client is not installed.
    """
    from semgrad_guard.review import open_queue  # loads the database library

    settings = queue_settings(review)
    if review.token is not None:
        return open_queue(review.url, token=review.token, settings=settings)
    return open_queue(review.url, settings=settings)


def queue_settings(review: ReviewSettings) -> QueueSettings:
    """Return the settings of a policy's queue."""
    from semgrad_guard.review import AtExpiry, QueueSettings  # loads the database library

    return QueueSettings(
        lease_s=review.lease_s,
        deadline_s=review.deadline_s,
        at_expiry=AtExpiry(review.at_deadline),
        tag_weights=review.tag_weights,
        retention_s=None if review.retention_days is None else timedelta(days=review.retention_days).total_seconds(),
    )


SHOWN_BESIDE_FUSED = "hybridgrad"
"""The raw score shown beside a fused confidence: the paper's mixture."""


def assemble(
    source: PolicySource, *, model: object | None, scorer: Scorer | None, embedder: Embedder | None, reload: bool
) -> Parts | Callable[[], Parts]:
    """Return the stages that a policy describes, or with `reload` a function that returns the present ones.

    Args:
        source: policy file, its content, a policy, or `None` for the shipped one.
        model: scoring model in place of the policy's.
        scorer: a ready scorer in place of the policy's.
        embedder: sentence embeddings in place of the policy's.
        reload: reload the file when it changes.

    Raises:
        PolicyFileError: the policy has mistakes.
        ModelError: the scoring model is not installed, missing or misspelt.
        CalibrationError: the profile cannot be read, is another model's, or cannot keep the error rate that `accept`
            asks for.
    """
    policy = ready_policy(source, Given(model=model, scorer=scorer, embedder=embedder))
    if reload and isinstance(source, str | Path):
        return FollowedParts(PolicyWatcher(source), model=model, scorer=scorer, embedder=embedder).current
    return parts_of(policy, scorer or _scorer(policy, model, embedder))


def parts_of(policy: Policy, scorer: Scorer) -> Parts:
    """Return the stages of a policy with this scorer."""
    profile = profile_of(policy)
    calibrator = _calibrator(profile)
    queue = queue_of(policy.review)
    reuse = policy.review.reuse_verdicts
    return Parts(
        scorer=scorer,
        calibrator=calibrator,
        decider=decider_of(policy, profile),
        queue=queue,
        earlier=None if reuse is None else EarlierVerdicts(queue, reuse),
        verdicts=pass_verdicts_on(queue, policy, calibrator),
        sink=_sink(policy),
        abstain_message=policy.messages.abstain,
        budget_s=policy.budget.seconds,
        policy=f"{policy.source} ({policy.digest})",
    )


def scorer_of(
    settings: ScorerSettings,
    model: object | None = None,
    profile: Profile | None = None,
    embedder: Embedder | None = None,
) -> LazyScorer:
    """Return the scorer that a policy names; its model is loaded when the first answer is scored.

    Args:
        settings: the policy's `scorer` section.
        model: scoring model in place of the policy's: anything that `load_model` takes.
        profile: gives position, band and embedding where the section leaves them out, if it was fitted for this model.
        embedder: sentence embeddings in place of the policy's, such as the retriever's.
    """
    source = settings.model if model is None else model

    def load() -> Scorer:
        from semgrad_guard.models import load_model  # loads torch
        from semgrad_guard.models.embedding import SentenceModel  # loads numpy
        from semgrad_guard.scoring import SemGradScorer  # loads torch

        _log.info("loading scoring model %s", settings.model if model is None else type(model).__name__)
        local = load_model(source, dtype=settings.dtype, device=settings.device)
        own = profile if profile is not None and profile.fingerprint.model == local.weights_digest else None
        band = settings.band or (own.band if own else None)
        meaning = settings.embedding or (own.embedder if own else None)
        return SemGradScorer(
            local,
            method=SHOWN_BESIDE_FUSED if settings.method == FUSED else settings.method,
            position=settings.position or (own.position if own else None),
            band=(band[0], band[1] + 1) if band else None,
            granularity=settings.granularity,
            signals=(*FREE, *settings.signals),
            embedder=embedder or (SentenceModel(meaning) if meaning else None),
        )

    return LazyScorer(settings.model if model is None else type(model).__name__, load)


class FollowedParts:
    """The stages of a policy file that may change; the scorer is rebuilt only if the `scorer` section changes."""

    def __init__(
        self,
        watcher: PolicyWatcher,
        *,
        model: object | None,
        scorer: Scorer | None,
        embedder: Embedder | None = None,
    ) -> None:
        """Build the stages for the first time."""
        self._watcher, self._given = watcher, scorer
        self._model, self._embedder = model, embedder
        self._lock = threading.Lock()
        self._policy = watcher.current()
        self._parts = parts_of(self._policy, scorer or _scorer(self._policy, model, embedder))

    def current(self) -> Parts:
        """Return the present stages, or the last good ones if those of the changed policy cannot be built."""
        with self._lock:
            policy = self._watcher.current()
            if policy is not self._policy:
                before, self._policy = self._policy, policy
                self._rebuild(policy, keep_scorer=policy.scorer == before.scorer)
            return self._parts

    def _rebuild(self, policy: Policy, *, keep_scorer: bool) -> None:
        try:
            check_ready(policy, Given(model=self._model, scorer=self._given, embedder=self._embedder))
            scorer = self._given or (
                self._parts.scorer if keep_scorer else _scorer(policy, self._model, self._embedder)
            )
            parts = parts_of(policy, scorer)
        except Exception as error:  # noqa: BLE001 - a broken change must not take the guard down
            _log.warning("the changed policy can't be used; the last good one stays in force: %s", error)
            return
        replaced, self._parts = self._parts, parts
        for part in (replaced.sink, replaced.verdicts):
            if part is not None:  # closing may wait for a slow server, and an answer must not wait for that
                threading.Thread(target=part.close, name="semgrad-close", daemon=True).start()


def _scorer(policy: Policy, model: object | None, embedder: Embedder | None) -> LazyScorer:
    return scorer_of(policy.scorer, model, profile_of(policy), embedder)


class NoCalibrator:
    """Leaves every score uncalibrated, because the policy names no profile."""

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:  # noqa: ARG002 - the protocol's arguments
        """Return no confidence."""
        return Confidence(value=None, why="the policy names no profile (`scorer: {profile: ...}`)")

    def with_span_confidences(self, score: Score) -> Score:
        """Return the score unchanged."""
        return score


def profile_of(policy: Policy) -> Profile | None:
    """Return the profile that a policy names; `None` when it names none.

    Raises:
        CalibrationError: the profile cannot be read.
    """
    if policy.profile is None:
        return None
    from semgrad_guard.calibration import load_profile  # loads numpy

    return load_profile(policy.profile)


def decider_of(policy: Policy, profile: Profile | None) -> PolicyDecider:
    """Return the decider of a policy, with its thresholds computed.

    Raises:
        CalibrationError: the profile cannot keep the error rate that `accept` asks for, or there is none.
    """
    decider = PolicyDecider(policy, resolver(profile))
    decider.compute_thresholds()
    return decider


def _calibrator(profile: Profile | None) -> Calibrator:
    if profile is None:
        return NoCalibrator()
    from semgrad_guard.calibration import DriftMonitor, ProfileCalibrator  # loads numpy

    return ProfileCalibrator(profile, drift=DriftMonitor(profile))


def _sink(policy: Policy) -> Sink | None:
    telemetry = policy.telemetry
    if not (telemetry.langsmith or telemetry.otel or telemetry.jsonl):
        return None
    from semgrad_guard.telemetry import TelemetrySettings, build_sinks  # loads the sinks' libraries

    settings = TelemetrySettings(
        langsmith=telemetry.langsmith,
        otel=telemetry.otel,
        jsonl=Path(telemetry.jsonl) if telemetry.jsonl else None,
        log_text=telemetry.log_text,
    )
    return cast("Sink", build_sinks(settings))
