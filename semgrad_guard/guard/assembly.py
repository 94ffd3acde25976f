"""A policy becomes the stages of a guard."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

from semgrad_guard.flow import Confidence
from semgrad_guard.guard.lazy import LazyScorer
from semgrad_guard.guard.question_run import Parts
from semgrad_guard.guard.reviewing import EarlierVerdicts, queue_of
from semgrad_guard.guard.thresholds import resolver
from semgrad_guard.guard.verdict_loop import pass_verdicts_on
from semgrad_guard.policy import Policy, PolicyDecider, PolicyWatcher, policy_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from semgrad_guard.calibration import Profile
    from semgrad_guard.flow import Exchange, Score
    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.policy.model import ScorerSettings
    from semgrad_guard.ports import Calibrator, Scorer, Sink

    PolicySource = str | Path | Mapping[str, object] | Policy | None

_log = logging.getLogger("semgrad_guard")

FUSED = "fused"
"""Method by which the profile weighs all signals; the raw score shown beside it is the paper's mixture."""
SHOWN_BESIDE_FUSED = "hybridgrad"


def assemble(
    source: PolicySource, *, model: object | None, scorer: Scorer | None, embedder: Embedder | None, reload: bool
) -> Parts | Callable[[], Parts]:
    """Return the stages that a policy describes, or a function of the present ones when its file is followed.

    Args:
        source: policy file, its content, a policy, or `None` for the shipped one.
        model: scoring model in place of the policy's.
        scorer: a ready scorer in place of the policy's.
        embedder: sentence embeddings in place of the policy's.
        reload: follow changes of the file.

    Raises:
        PolicyFileError: the policy has a mistake.
        CalibrationError: the profile cannot be read, or cannot keep the error rate that `accept` asks for.
    """
    if reload and isinstance(source, str | Path):
        return FollowedParts(PolicyWatcher(source), model=model, scorer=scorer, embedder=embedder).current
    policy = policy_from(source)
    return parts_of(policy, scorer or _scorer(policy, model, embedder))


def parts_of(policy: Policy, scorer: Scorer) -> Parts:
    """Return the stages of a policy around a scorer."""
    profile = profile_of(policy)
    calibrator = _calibrator(profile)
    queue = queue_of(policy.review)
    wanted = policy.review.reuse_verdicts
    return Parts(
        scorer=scorer,
        calibrator=calibrator,
        decider=decider_of(policy, profile),
        queue=queue,
        earlier=None if wanted is None else EarlierVerdicts(queue, wanted),
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
        profile: where position, band and embedding come from that the section leaves out, if it is this model's.
        embedder: sentence embeddings in place of the policy's, such as the retriever's.
    """
    source = settings.model if model is None else model

    def load() -> Scorer:
        from semgrad_guard.models import load_model  # noqa: PLC0415 - loads torch
        from semgrad_guard.models.embedding import SentenceModel  # noqa: PLC0415 - loads numpy
        from semgrad_guard.scoring import SemGradScorer  # noqa: PLC0415 - loads torch
        from semgrad_guard.scoring.signals import FREE  # noqa: PLC0415 - beside the scorer

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
    """The stages of a policy file that may change; the scorer is kept while the policy's `scorer` section is."""

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
        """Return the present stages; while the changed policy can't be built, the last good ones."""
        with self._lock:
            policy = self._watcher.current()
            if policy is not self._policy:
                before, self._policy = self._policy, policy
                self._rebuild(policy, keep_scorer=policy.scorer == before.scorer)
            return self._parts

    def _rebuild(self, policy: Policy, *, keep_scorer: bool) -> None:
        try:
            scorer = self._given or (
                self._parts.scorer if keep_scorer else _scorer(policy, self._model, self._embedder)
            )
            parts = parts_of(policy, scorer)
        except Exception as error:  # noqa: BLE001 - a broken change must not take the guard down
            _log.warning("the changed policy can't be used; the last good one stays in force: %s", error)
            return
        replaced, self._parts = self._parts, parts
        for part in (replaced.sink, replaced.verdicts):
            if part is not None:  # closing may wait for a slow server, and an answer waits for us
                threading.Thread(target=part.close, name="semgrad-close", daemon=True).start()


def _scorer(policy: Policy, model: object | None, embedder: Embedder | None) -> LazyScorer:
    return scorer_of(policy.scorer, model, profile_of(policy), embedder)


class NoCalibrator:
    """Leaves every score uncalibrated: the policy names no profile."""

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:  # noqa: ARG002 - the protocol's arguments
        """Return no confidence."""
        return Confidence(value=None, why="the policy names no profile (`scorer: {profile: ...}`)")

    def with_span_confidences(self, score: Score) -> Score:
        """Return the score as it is."""
        return score


def profile_of(policy: Policy) -> Profile | None:
    """Return the profile that a policy names; `None` when it names none.

    Raises:
        CalibrationError: it cannot be read.
    """
    if policy.profile is None:
        return None
    from semgrad_guard.calibration import load_profile  # noqa: PLC0415 - loads numpy

    return load_profile(policy.profile)


def decider_of(policy: Policy, profile: Profile | None) -> PolicyDecider:
    """Return what decides by a policy, its thresholds computed.

    Raises:
        CalibrationError: the profile cannot keep the error rate that `accept` asks for, or there is none.
    """
    decider = PolicyDecider(policy, resolver(profile))
    decider.compute_thresholds()
    return decider


def _calibrator(profile: Profile | None) -> Calibrator:
    if profile is None:
        return NoCalibrator()
    from semgrad_guard.calibration import DriftMonitor, ProfileCalibrator  # noqa: PLC0415 - loads numpy

    return ProfileCalibrator(profile, drift=DriftMonitor(profile))


def _sink(policy: Policy) -> Sink | None:
    wanted = policy.telemetry
    if not (wanted.langsmith or wanted.otel or wanted.jsonl):
        return None
    from semgrad_guard.telemetry import TelemetrySettings, build_sinks  # noqa: PLC0415 - loads the sinks' libraries

    settings = TelemetrySettings(
        langsmith=wanted.langsmith,
        otel=wanted.otel,
        jsonl=Path(wanted.jsonl) if wanted.jsonl else None,
        log_text=wanted.log_text,
    )
    return cast("Sink", build_sinks(settings))
