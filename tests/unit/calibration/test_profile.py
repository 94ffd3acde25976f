"""The profile file: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.calibration import Profile, load_profile
from semgrad_guard.errors import ProfileFileError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_saved_profile_loads_as_the_same(profile: Profile, tmp_path: Path) -> None:
    """Not one digit is lost in the file."""
    assert load_profile(profile.save(tmp_path / "p.json")) == profile


def test_the_file_is_plain_json_of_plain_numbers(profile: Profile, tmp_path: Path) -> None:
    """Anyone can read it, and nothing in it can run."""
    data = json.loads(profile.save(tmp_path / "p.json").read_text())
    assert data["version"] == 1
    assert data["fingerprint"]["model"] == "m1"
    assert {column["name"] for column in data["model"]["columns"]} == set(profile.model.names)


def test_saving_leaves_no_other_file(profile: Profile, tmp_path: Path) -> None:
    """The temporary file of the atomic write is gone."""
    profile.save(tmp_path / "p.json")
    profile.save(tmp_path / "p.json")
    assert [f.name for f in tmp_path.iterdir()] == ["p.json"]


def test_a_failed_write_keeps_the_old_file(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must not leave half a profile."""
    path = profile.save(tmp_path / "p.json")
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("semgrad_guard.calibration.profile.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        profile.model_copy(update={"name": "other"}).save(path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["p.json"]


def test_a_relative_path_starts_from_base(profile: Profile, tmp_path: Path) -> None:
    """A policy names its profile relative to itself."""
    profile.save(tmp_path / "profiles" / "p.json")
    assert load_profile("profiles/p.json", base=tmp_path) == profile


def test_a_missing_profile_names_the_shipped_ones(tmp_path: Path) -> None:
    """The error says what there is and how to build one."""
    with pytest.raises(ProfileFileError, match=r"shipped profiles: .*semgrad-guard calibrate") as caught:
        load_profile("nowhere.json", base=tmp_path)
    assert caught.value.path == str(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "not JSON"),
        ("[]", "version None"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1}', "`name`"),
    ],
)
def test_a_file_that_is_no_profile_says_what_is_wrong(tmp_path: Path, content: str, why: str) -> None:
    """Each kind of broken file has its own words."""
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(ProfileFileError) as caught:
        load_profile(path)
    assert why in caught.value.why


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"extra": 1}, "extra"),
        ({"edge": 0.7}, "edge"),
        ({"curve": {"kind": "magic"}}, "curve"),
        ({"curve": {"kind": "platt", "slope": -1, "intercept": 0}}, "curve.platt.slope"),
        ({"pairs": {"confidence": [0.5], "correct": [], "group": []}}, "pairs"),
    ],
)
def test_a_changed_field_is_refused_by_name(profile: Profile, tmp_path: Path, change: dict, place: str) -> None:
    """A hand-edited profile cannot slip in a downward curve, an unknown field or uneven lists."""
    data = json.loads(profile.model_dump_json()) | change
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileFileError) as caught:
        load_profile(path)
    assert caught.value.why.startswith(f"`{place}`")


def test_nan_in_the_file_is_refused(profile: Profile, tmp_path: Path) -> None:
    """A coefficient that is not a number would make every confidence NaN."""
    data = json.loads(profile.model_dump_json())
    data["model"]["intercept"] = float("nan")
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileFileError, match="intercept"):
        load_profile(path)


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    """What cannot be read is named, not raised raw."""
    (tmp_path / "p.json").mkdir()
    with pytest.raises(ProfileFileError, match="cannot be read"):
        load_profile(tmp_path / "p.json")


def test_position_and_band_are_read_from_the_settings(profile: Profile) -> None:
    """A policy that names neither takes the profile's; the words are those of a scorer's fingerprint."""
    settings = "position -3, blocks 15 to 29, by answer"
    found = profile.model_copy(update={"fingerprint": replace(profile.fingerprint, settings=settings)})
    assert (found.position, found.band) == (-3, (15, 29))
    unknown = profile.model_copy(update={"fingerprint": replace(profile.fingerprint, settings="")})
    assert (unknown.position, unknown.band) == (None, None)
