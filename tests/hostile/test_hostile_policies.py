"""Policies and imported rows that nobody writes: each is refused in our words, also on reloading."""

from __future__ import annotations

import json
import random
from contextlib import closing

import pytest

from semgrad_guard.errors import DataFileError, PolicyFileError, SemGradGuardError
from semgrad_guard.policy import parse_policy
from semgrad_guard.review import open_queue
from tests.hostile_cases import CASES
from tests.review_queues import submit

TAGS = ("bool", "int", "float", "timestamp", "binary", "set", "omap", "pairs", "null", "str", "python/object:os.system")
SCALARS = (
    "x",
    "''",
    "1" * 5000,
    "1" + "0" * 400,
    "0x" + "f" * 9000,
    "1:99999999999999999999:9",
    "2026-13-45",
    "9999-12-31T23:59:59-23:59",
    ".inf",
    ".nan",
    "1e400",
    "\x00",
    "\ud800",
    "\u202e",
    "[" * 5000 + "]" * 5000,
    "{a: " * 2000 + "1" + "}" * 2000,
    "&a [*a]",
    "0b",
    "~",
)
KEYS = ("accept", "budget", "review", "escalate", "overrides", "messages", "telemetry", "on_error", "version", "scorer")
HEADS = ("", "{seconds: %s}", "{url: 'sqlite://', deadline_s: %s}", "[{fallback_model: {name: %s}}]", "{%s: 1}")


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("scalar", ["x", "''", "é", "0b"])
def test_a_value_that_is_not_what_its_tag_says(tag, scalar):
    """`!!bool x` is an error of the library's own kind, which ended a guard that reloads its policy."""
    with pytest.raises(PolicyFileError):
        parse_policy(f"accept: !!{tag} {scalar}")


def test_made_up_policies():
    """Every value in every place is read, or refused with the file's line."""
    rng = random.Random(1)  # noqa: S311 - a test repeats itself
    refused = 0
    for _ in range(5 * CASES):
        lines = []
        for key in rng.sample(KEYS, rng.randint(1, 3)):
            value = rng.choice(SCALARS)
            if rng.random() < 0.4:
                value = f"!!{rng.choice(TAGS)} {value}"
            head = rng.choice(HEADS)
            lines.append(f"{key}: {head % value if head else value}")
        try:
            parse_policy("\n".join(lines))
        except SemGradGuardError:
            refused += 1
    assert refused > CASES


@pytest.mark.parametrize("part", ["item", "audit"])
@pytest.mark.parametrize("number", [-1, 2**31, 2**70])
def test_a_version_that_no_database_can_count(part, number):
    """It reached the database, whose error was taken for damage of the queue."""
    with closing(open_queue("sqlite://")) as queue:
        submit(queue)
        (line,) = queue.export()
        row = json.loads(line)
        row["item"]["exchange_id"] = row["document"]["exchange_id"] = "other"
        (row["item"] if part == "item" else row["audit"][0])["version"] = number
        with pytest.raises(DataFileError, match="version"):
            queue.import_lines([json.dumps(row)], "root")


def test_made_up_rows_for_import():
    """A transfer file may come from anywhere; whatever is taken can be listed and exported again."""
    rng = random.Random(2)  # noqa: S311 - a test repeats itself
    odd = [None, True, -1, 2**70, 1e308, "", "\x00", "\ud800", "x" * 3000, [], {}, [[]], *EDGES]
    with closing(open_queue("sqlite://")) as queue:
        submit(queue)
        (line,) = queue.export()
        for n in range(3 * CASES):
            row = json.loads(line)
            row["item"]["exchange_id"] = row["document"]["exchange_id"] = f"x{n}"
            row["item"]["id"] = f"item-{n}"
            for _ in range(rng.randint(1, 3)):
                part = rng.choice(["item", "document"])
                row[part][rng.choice(sorted(row[part]))] = rng.choice(odd)
            row["audit"] = rng.choice([[], row["audit"]])
            text = json.dumps(row)
            text = text if rng.random() < 0.9 else text[: rng.randrange(len(text))] + rng.choice(["", "[" * 3000])
            if text.strip():
                try:
                    queue.import_lines([text], "root")
                except DataFileError:
                    continue
        queue.expire_leases()
        queue.expire_deadlines()
        assert list(queue.export())
        assert queue.list(limit=200).items


EDGES = ("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-01-01T00:00:00", "1e400")
