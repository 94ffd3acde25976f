"""Profiles that nobody fitted: each is refused in our words, or gives a probability for whatever score there is."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from semgrad_guard.calibration import DriftMonitor, Profile, ProfileCalibrator, load_profile, risk_threshold
from semgrad_guard.calibration.profile import parse_profile
from semgrad_guard.cli.profile import adversarial_tables, describe, evidence_table, left_out_tables
from semgrad_guard.errors import CalibrationError, ProfileFileError
from semgrad_guard.flow import Exchange, Fingerprint, Score, SpanScore
from semgrad_guard.signals import STATE_PROBE
from tests.hostile_cases import CASES

SETTINGS = "position -3, blocks 15 to 29, by answer, texts by claim, embedder minilm [0.100 -0.200]"
BETA = {"kind": "beta", "a": 1.0, "b": 0.5, "c": -0.1}
COUNTED = {
    "kind": "venn_abers",
    "knots": [-1.0, 1.0],
    "if_wrong": [0.0, 0.1, 0.2, 0.3, 0.4],
    "if_right": [0.3, 0.4, 0.5, 0.9, 1.0],
}
CURVES = (
    {"kind": "platt", "slope": 1.5, "intercept": 0.2},
    BETA,
    {"kind": "isotonic", "knots": [-1.0, 0.0, 2.0], "values": [0.1, 0.4, 1.0]},
    COUNTED,
    {"kind": "cautious", "fitted": BETA, "counted": COUNTED},
    {"kind": "percentile", "margins": [-1.0, 1.0], "shares": [0.2, 0.9]},
)
INTERVAL = {"value": 0.8, "low": 0.7, "high": 0.9, "level": 0.95}
FIGURES = ("auroc", "auprc", "prr", "aurc", "ece", "brier", "log_loss")
SOURCE = {"n": 9, "right": 0.4, "auroc": INTERVAL, "ece": INTERVAL, "right_above": {"0.5": INTERVAL}, "baselines": {}}


def column(name, transform, **changes) -> dict:
    """Return one signal of a fused model."""
    usual = {"mean": 0.5, "scale": 2.0, "weight": -0.7, "required": True, "average": 1.0, "floor": 0.01}
    return {"name": name, "transform": transform} | usual | changes


def whole(curve, **changes) -> dict:
    """Return a profile that can be used, with something in every part."""
    columns = [
        column("mean_nll", "log"),
        column("n_words", "log1p", required=False),
        column("grounding", "identity", weight=1.2),
        column(STATE_PROBE, "identity", weight=0.4),
    ]
    return {
        "version": 1,
        "name": "made-up",
        "created_at": "2026-01-01T00:00:00Z",
        "expires_at": None,
        "fingerprint": {"model": "m", "dtype": "float32", "template": "t", "settings": SETTINGS, "proxy": False},
        "method": "fused",
        "model": {"columns": columns, "intercept": -0.3},
        "probes": [{"name": STATE_PROBE, "weights": [0.5, -1.0], "intercept": 0.1}],
        "curve": curve,
        "edge": 0.01,
        "label_free": False,
        "n_labels": 100,
        "base_rate": 0.4,
        "evidence": {
            **dict.fromkeys(FIGURES, INTERVAL),
            "signals": {"mean_nll": INTERVAL},
            "adversarial": {"copy": {"n": 3, "mean": 0.2, "accepted": 0.1}},
            "adversarial_threshold": 0.6,
            "left_out": {"one": SOURCE},
        },
        "reference": {"n": 50, "margin": [-1.0, 0.0, 1.0], "signals": {"mean_nll": [0.1, 2.0]}},
        "pairs": {
            "confidence": [0.2, 0.9, 0.95, 0.97],
            "correct": [False, True, True, True],
            "group": [0, 1, 2, 2],
            "tags": [[], ["a"], [], ["a", "b"]],
        },
        "notes": ["a note"],
        "basis": "made-up rows",
    } | changes


def usual(curve) -> dict:
    """Return a profile with a simpler one and one for short answers."""
    brief = whole(CURVES[0], max_words=12)
    return whole(curve, simpler=whole(CURVES[2]), brief=brief)


RAW = {
    "@digits": "1" * 5000,
    "@long": "1" + "0" * 400,
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@nested": '{"simpler": ' * 300 + "{}" + "}" * 300,
    "@large": "1e308",
    "@more": "-1.7976931348623157e308",
    "@least": "5e-324",
    "@beyond": "1e400",
    "@half": '"\\ud800"',
    "@nan": "NaN",
    "@inf": "-Infinity",
}
"""Written in place of a text, as it stands."""
SCALARS = st.sampled_from([None, True, 0, -1, 1, 2, 0.0, -0.0, 1e-300, 1e9, 1e15, -1e15, 2**63, 2**70, "", "x", *RAW])
WORDS = st.sampled_from(
    [
        "\x00",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "2026-01-01T00:00:00",
        "log",
        "log1p",
        "percentile",
        "fused",
        STATE_PROBE,
        f"position -{'1' * 5000}",
        f"position -3, blocks 1 to {'9' * 5000}, texts by claim",
        f"position -3, blocks 15 to 29, texts by claim, embedder e [{'.' * 20} -]",
        "position -3, blocks 15 to 29, by answer, texts by claim, embedder minilm [0.1 1..2]",
    ]
)
VALUES = st.recursive(
    SCALARS | WORDS | st.floats() | st.integers(-10, 10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["n", "value", "x"]), inner),
    max_leaves=4,
)
NUMBERS = st.floats() | st.sampled_from([0.0, 1e308, -1e308, 5e-324, 3.0])


def places(part, path=()):
    """Yield the way to every part of a profile."""
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(part, path):
    """Return the part of a profile that a way leads to."""
    for key in path:
        part = part[key]
    return part


def change(data, draw) -> None:
    """Change something in a profile."""
    path = draw(st.sampled_from(list(places(data))))
    within, key = at(data, path[:-1]), path[-1]
    match draw(st.sampled_from(["set", "set", "set", "drop", "swap", "twice", "add"])):
        case "set":
            within[key] = draw(VALUES)
        case "drop":
            del within[key]
        case "swap":
            other = draw(st.sampled_from(list(places(data))))
            found, moved = json.loads(json.dumps(at(data, other))), json.loads(json.dumps(within[key]))
            at(data, other[:-1])[other[-1]] = moved
            with suppress(KeyError, IndexError, TypeError):  # the one was in the other
                at(data, path[:-1])[key] = found
        case "twice" if isinstance(within, list):
            within.insert(key, within[key])
        case _ if isinstance(within, dict):
            within[draw(st.sampled_from(["version", "extra", "floor", "kind"]))] = draw(VALUES)


@st.composite
def made_up(draw) -> str:
    """Return the text of a profile in which something was changed."""
    data = json.loads(json.dumps(usual(draw(st.sampled_from(CURVES)))))
    for _ in range(draw(st.integers(0, 3))):
        change(data, draw)
    text = json.dumps(data)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.sampled_from(["", "}", "[" * 3000, "\x00", "\ufeff"]))
    return text


@st.composite
def scores(draw) -> Score:
    """Return a score that fits the usual profile, with any numbers."""
    names = ("mean_nll", "n_words", "grounding", "altered_copy")
    signals = draw(st.fixed_dictionaries({"mean_nll": NUMBERS}, optional=dict.fromkeys(names[1:], NUMBERS)))
    return Score(
        method="mean_nll",
        value=signals["mean_nll"],
        signals=signals,
        fingerprint=Fingerprint(model="m", dtype="float32", template="t", settings=SETTINGS),
        model="tiny",
        spans=(SpanScore(0, 1, signals),),
        vectors={STATE_PROBE: tuple(draw(st.lists(NUMBERS, min_size=2, max_size=2)))},
        passage_attention=(0.9, 0.1),
    )


def read(text, path) -> Profile | None:
    """Return the profile in a file, or `None` where it is refused."""
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        return load_profile(path)
    except ProfileFileError as error:
        if not error.why or len(str(error)) > 2000:
            raise AssertionError from error
        return None


def use(profile, score) -> int:
    """Do all that is done with a profile; return how many probabilities it gave."""
    calibrator = ProfileCalibrator(profile, drift=DriftMonitor(profile, window=2, step=1))
    asked = Exchange(prompt="p", answer="a")
    found = [calibrator.confidence(asked, score) for _ in range(3)]
    for confidence in found:
        assert confidence.value is None or 0 <= confidence.value <= 1
        assert confidence.why
        json.dumps([each.weight for each in confidence.contributions], allow_nan=False)
    for span in calibrator.with_span_confidences(score).spans:
        assert span.confidence is None or 0 <= span.confidence <= 1
    with suppress(CalibrationError):
        assert 0 <= risk_threshold(profile, 0.3, 0.3).value <= 1
    return sum(confidence.value is not None for confidence in found)


def show(profile) -> None:
    """Print what `semgrad-guard profile show` prints of it."""
    console = Console(quiet=True)
    for fit in profile.fits():
        console.print(describe(fit), markup=False)
        for table in (evidence_table(fit), *left_out_tables(fit), *adversarial_tables(fit)):
            console.print(table)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve["kind"])
def test_what_is_changed_below_can_be_used(curve, tmp_path) -> None:
    """The tests after this one would pass where every profile is refused."""
    profile = read(json.dumps(usual(curve)), tmp_path / "p.json")
    assert profile is not None
    signals = {"mean_nll": 0.4, "grounding": 0.9, "n_words": 30.0}
    score = Score(
        method="mean_nll",
        value=0.4,
        signals=signals,
        fingerprint=profile.fingerprint,
        model="tiny",
        vectors={STATE_PROBE: (0.1, 0.2)},
    )
    assert use(profile, score) == 3


def test_made_up_profiles(tmp_path) -> None:
    """Each is a profile that gives a probability for any score, or an error of ours."""
    counted = {"refused": 0, "used": 0}

    @settings(max_examples=5 * CASES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(made_up(), scores())
    def ask(text, score) -> None:
        profile = read(text, tmp_path / "p.json")
        if profile is None:
            counted["refused"] += 1
            return
        again = load_profile(profile.save(tmp_path / "again.json"))
        assert again == profile
        counted["used"] += use(profile, score) > 0
        show(profile)

    ask()
    assert counted["refused"] > CASES / 2
    assert counted["used"] > CASES / 10


@pytest.mark.parametrize(
    "text", ["", "null", "1", '"x"', "[]", "{}", *RAW.values(), '{"version": "' + "x" * 9000 + '"}']
)
def test_a_file_that_holds_something_else(text, tmp_path) -> None:
    """What is no object has no version either."""
    assert read(text, tmp_path / "p.json") is None


@pytest.mark.parametrize("version", [True, 1.0, "1", 2, 0, -1, None, [1], "@digits", "@deep", "@nan"])
def test_only_the_version_of_this_release_is_read(version) -> None:
    """Version 1 is the number 1; what looks like it may be another release's."""
    text = json.dumps(whole(CURVES[0], version=version))
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    with suppress(ProfileFileError):
        assert parse_profile(text, "here").version == 1


@pytest.mark.parametrize(
    "name", ["\x00", "a/\x00.json", "~nobody-has-this-name/p.json", "/\ud800.json", "x" * 5000 + ".json"]
)
def test_a_name_that_no_file_has(name) -> None:
    """The error that says so is ours too."""
    with pytest.raises(ProfileFileError):
        load_profile(name)


def test_settings_of_a_score_that_nobody_wrote() -> None:
    """They come with scores from elsewhere; a number of thousands of digits in them is no position."""
    profile = parse_profile(json.dumps(whole(CURVES[0])), "here")
    for odd in ("position -" + "1" * 5000, "blocks 1 to " + "9" * 5000, f"{SETTINGS[:-1]} .. 1..2]", "x" * 10**6):
        fingerprint = replace(profile.fingerprint, settings=odd)
        score = Score(method="mean_nll", value=1.0, signals={}, fingerprint=fingerprint, model="m")
        assert ProfileCalibrator(profile).confidence(Exchange(prompt="p", answer="a"), score).value is None
