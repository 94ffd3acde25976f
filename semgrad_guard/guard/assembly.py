"""Builds the stages of a guard from a policy."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from semgrad_guard.deadline import Deadline, call_before
from semgrad_guard.errors import MissingExtraError, ModelNotFoundError
from semgrad_guard.extras import Lazy
from semgrad_guard.flow import Confidence
from semgrad_guard.guard.question_run import Parts
from semgrad_guard.guard.readiness import Given, check_ready, ready_policy
from semgrad_guard.guard.thresholds import resolver
from semgrad_guard.guard.verdict_loop import EarlierVerdicts, pass_verdicts_on
from semgrad_guard.policy import Policy, PolicyDecider, PolicyWatcher, RiskTarget, policy_of
from semgrad_guard.policy.model import FUSED, SHIPPED_PROFILES
from semgrad_guard.signals import COSTLY, FREE, PROBES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from semgrad_guard.calibration import DriftMonitor, Profile, ProfileCalibrator
    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Exchange, Fingerprint, Score
    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.policy import AcceptOption, Policy, PolicySource
    from semgrad_guard.policy.model import ScorerSettings
    from semgrad_guard.policy.review import ReviewSettings
    from semgrad_guard.ports import Calibrator, Scorer, Sink
    from semgrad_guard.remote import RemoteScorer
    from semgrad_guard.review import QueueSettings, SqlReviewQueue
    from semgrad_guard.review.client import ReviewClient


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


def queue_of(review: ReviewSettings) -> SqlReviewQueue | ReviewClient | None:
    """Return the queue that a policy names, `None` where it names none; it connects at first use.

    Raises:
        ReviewError: the URL is not that of a queue.
        MissingExtraError: the database driver or the web client is not installed.
    """
    if review.queue_url is None:
        return None
    from semgrad_guard.review import open_queue  # loads the database library

    settings = queue_settings(review)
    if review.token is not None:
        return open_queue(review.queue_url, token=review.token, settings=settings)
    return open_queue(review.queue_url, settings=settings)


def queue_settings(review: ReviewSettings) -> QueueSettings:
    """Return the settings of a policy's queue."""
    from semgrad_guard.review import AtExpiry, QueueSettings  # loads the database library

    return QueueSettings(
        lease_s=review.lease_s,
        deadline_s=review.deadline_s,
        at_expiry=AtExpiry(review.at_deadline),
        least_deadline_s=review.least_deadline_s,
        tag_weights=review.tag_weights,
        retention_s=None if review.retention_days is None else timedelta(days=review.retention_days).total_seconds(),
    )


SHOWN_BESIDE_FUSED = "hybridgrad"
"""The raw score shown beside a fused confidence: the paper's mixture."""


def assemble(
    source: PolicySource | None,
    *,
    accept: AcceptOption | None,
    model: object | None,
    scorer: Scorer | None,
    embedder: Embedder | None,
    reload: bool,
) -> Parts | Callable[[], Parts]:
    """Return the stages that a policy describes, or with `reload` a function that returns the present ones.

    Args:
        source: policy file, its content, or a policy; `None` for a guard that measures or holds back.
        accept: the confidence below which a guard without a policy holds answers back; `None` only measures.
        model: scoring model in place of the policy's.
        scorer: a ready scorer in place of the policy's.
        embedder: sentence embeddings in place of the policy's.
        reload: reload the file when it changes.

    Raises:
        OptionError: `accept` is given beside a policy, or is no confidence.
        PolicyFileError: the policy has mistakes.
        ModelError: the scoring model is not installed, missing or misspelt.
        CalibrationError: the profile cannot be read, is another model's, or cannot keep the error rate that `accept`
            asks for.
    """
    given = Given(model=model, scorer=scorer, embedder=embedder)
    if source is None or accept is not None:
        policy = policy_of(source, accept)
        check_ready(policy, given)
    else:
        policy = ready_policy(source, given)
        if reload and isinstance(source, str | Path):
            return FollowedParts(PolicyWatcher(source), model=model, scorer=scorer, embedder=embedder).current
    return parts_of(policy, scorer or _scorer(policy, model, embedder))


def parts_of(policy: Policy, scorer: Scorer) -> Parts:
    """Return the stages of a policy with this scorer."""
    profile = profile_of(policy)
    calibrator = _calibrator(policy, profile)
    queue = queue_of(policy.review)
    reuse = policy.review.reuse_verdicts
    return Parts(
        scorer=scorer,
        calibrator=calibrator,
        decider=decider_of(policy, profile),
        queue=queue,
        earlier=None if reuse is None or queue is None else EarlierVerdicts(queue, reuse),
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
    *,
    further: Sequence[str] = (),
) -> LazyScorer:
    """Return the scorer that a policy names; its model is loaded when the first answer is scored.

    Args:
        settings: the policy's `scorer` section.
        model: scoring model in place of the policy's: anything that `load_model` takes.
        profile: gives position, band and embedding where the section leaves them out, if it was fitted for this model.
        embedder: sentence embeddings in place of the policy's, such as the retriever's.
        further: signals to compute besides.
    """
    if settings.url is not None and model is None:
        return LazyScorer(settings.url, lambda: remote_scorer(settings, profile))
    source = settings.model if model is None else model
    name = _readable(source)

    def load() -> Scorer:
        from semgrad_guard.models import load_model  # loads torch
        from semgrad_guard.scoring import SemGradScorer  # loads torch

        _log.info("loading scoring model %s", name)
        local = load_model(source, dtype=settings.dtype, device=settings.device)
        own = profile if profile is not None and profile.fingerprint.model == local.weights_digest else None
        band = settings.band or (own.band if own else None)
        return SemGradScorer(
            local,
            method=SHOWN_BESIDE_FUSED if settings.method == FUSED else settings.method,
            position=settings.position or (own.position if own else None),
            band=(band[0], band[1] + 1) if band else None,
            granularity=settings.granularity,
            signals=(*FREE, *settings.signals, *_further_signals(own), *further),
            embedder=embedder or _embedder(settings.embedding, own),
        )

    return LazyScorer(name, load)


def remote_scorer(settings: ScorerSettings, profile: Profile | None) -> RemoteScorer:
    """Return the scorer at the server that a policy names; it is asked when the first answer is scored.

    Args:
        settings: the policy's `scorer` section, with a `url`.
        profile: the profile that reads the scores; where the section names it, the server's model has to be its own.
    """
    from semgrad_guard.remote import RemoteScorer  # needs the web client

    expected = profile.fingerprint if profile is not None and settings.profile is not None else None
    return RemoteScorer(
        settings.url or "",
        key=settings.key,
        expected=expected,
        method=None if settings.method == FUSED else settings.method,
        claims=settings.granularity == "sentence",
    )


def _readable(model: object) -> str:
    """Return a model's name for people; that of its type where it has none."""
    return str(model) if isinstance(model, str | Path) else str(getattr(model, "name", type(model).__name__))


def _further_signals(profile: Profile | None) -> tuple[str, ...]:
    """Return the signals that a profile uses and that are not computed unless asked for."""
    used = {name for fit in profile.fits() for name in fit.model.names} if profile is not None else set[str]()
    return tuple(name for name in (*PROBES, *COSTLY) if name in used)


def _embedder(named: str | None, profile: Profile | None) -> Embedder | None:
    """Return the sentence embeddings that a policy names, or else its profile, where they can be had.

    A profile that has a fit without them can do without.
    """
    from semgrad_guard.models.embedding import SentenceModel  # loads numpy

    wanted = named or (profile.embedder if profile is not None else None)
    if wanted is None:
        return None
    try:
        return SentenceModel(wanted)
    except (MissingExtraError, ModelNotFoundError) as error:
        if named is not None or profile is None or profile.simpler is None:
            raise
        _log.warning("profile %s is used without its signals of meaning: %s", profile.name, error)
        return None


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


class ShippedCalibrator:
    """Uses the first shipped profile that fits a score: for a guard whose policy names no scorer and so no profile."""

    def __init__(self, profiles: Sequence[ProfileCalibrator]) -> None:
        """Store the calibrators of the shipped profiles, the preferred one first."""
        self._profiles = tuple(profiles)

    @property
    def drift(self) -> DriftMonitor | None:
        """The monitor of the preferred profile."""
        return self._profiles[0].drift

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:
        """Return the confidence by the first profile that fits; without one, why there is none and what makes one."""
        why_not: Confidence | None = None
        for one in self._by_fit(score):
            found = one.confidence(exchange, score)
            if found.value is not None:
                return found
            if why_not is None and _is_of_model(one, score):
                why_not = found
        return why_not or Confidence(value=None, why=NO_PROFILE.format(model=score.model))

    def with_span_confidences(self, score: Score) -> Score:
        """Return the score with a confidence for every span, by the first profile that fits."""
        first = next(iter(self._by_fit(score)), None)
        return score if first is None else first.with_span_confidences(score)

    def _by_fit(self, score: Score) -> list[ProfileCalibrator]:
        """Return the profiles for a score: those for its model and author first, then those that read texts alone."""
        return sorted(self._profiles, key=lambda one: (not _is_of_model(one, score), not _is_of_author(one, score)))


NO_PROFILE = (
    "there is no profile for scores of {model}: `semgrad-guard calibrate answers.jsonl --model {model}` makes one, for "
    "a policy's `scorer: {{profile: profile.json}}`"
)
"""Why an answer has no confidence where the model that scores is none that a shipped profile was fitted for."""


def _is_of_model(one: ProfileCalibrator, score: Score) -> bool:
    return one.profile.fingerprint.model == score.fingerprint.model


def _is_of_author(one: ProfileCalibrator, score: Score) -> bool:
    return one.profile.fingerprint.proxy == score.fingerprint.proxy


def _calibrator(policy: Policy, profile: Profile | None) -> Calibrator:
    if profile is None:
        return NoCalibrator()
    from semgrad_guard.calibration import DriftMonitor, ProfileCalibrator, load_profile  # loads numpy

    calibrator = ProfileCalibrator(profile, drift=DriftMonitor(profile))
    if policy.chooses_profile:
        return calibrator
    # A promised error rate is one profile's: it says nothing of answers that another one judges.
    others = () if isinstance(policy.accept, RiskTarget) else SHIPPED_PROFILES[1:]
    further = [ProfileCalibrator(one, drift=DriftMonitor(one)) for one in map(load_profile, others)]
    return ShippedCalibrator([calibrator, *further])


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
        all_signals=telemetry.all_signals,
    )
    return cast("Sink", build_sinks(settings))
