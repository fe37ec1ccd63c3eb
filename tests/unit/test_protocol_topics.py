"""Topic names, their parsing, and the settings topics are created with."""

from __future__ import annotations

import re

import pytest

from pelton.core.call import InputTopic
from pelton.core.spec import FunctionKind, FunctionSpec
from pelton.protocol.topics import (
    MAX_RECORD_BYTES,
    Control,
    TopicKind,
    TopicPlan,
    Topics,
    check_name,
    instance_key,
    parse_spec_key,
    spec_key,
)

TOPICS = Topics("pelton")
SPEC = FunctionSpec(
    "classify-ticket", 1, "tickets", FunctionKind.SYNC, (), "worker", "classify", "ab", partitions=12
)


def test_names_of_function_topics() -> None:
    """Each topic of a function has the name the wire document gives it."""
    assert TOPICS.invocations("f") == "pelton.fn.f.invocations"
    assert TOPICS.retries("f") == "pelton.fn.f.retries"
    assert TOPICS.results("f") == "pelton.fn.f.results"
    assert TOPICS.dead_letters("f") == "pelton.fn.f.dead-letters"
    assert TOPICS.group("f") == "pelton.fn.f"
    assert TOPICS.input("f", InputTopic.INVOCATIONS) == TOPICS.invocations("f")
    assert TOPICS.input("f", InputTopic.RETRIES) == TOPICS.retries("f")


def test_names_of_control_topics() -> None:
    """Control topics have one name for each member."""
    assert TOPICS.control(Control.LIMIT_REQUESTS) == "pelton.control.limit-requests"
    assert len({TOPICS.control(topic) for topic in Control}) == 9


def test_every_name_parses_back() -> None:
    """Parsing gives the kind and the function or control topic a name was made of."""
    for kind, made in (
        (TopicKind.INVOCATIONS, TOPICS.invocations),
        (TopicKind.RETRIES, TOPICS.retries),
        (TopicKind.RESULTS, TOPICS.results),
        (TopicKind.DEAD_LETTERS, TOPICS.dead_letters),
    ):
        assert TOPICS.parse(made("a_b-C9")) == (kind, "a_b-C9")
    for topic in Control:
        assert TOPICS.parse(TOPICS.control(topic)) == (TopicKind.CONTROL, topic)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "pelton",
        "pelton.fn.f",
        "other.fn.f.results",
        "pelton.fn.f.control",
        "pelton.fn.f.keyss",
        "pelton.fn.9f.results",
        "pelton.fn.f.results.more",
        "pelton.control.nothing",
        "pelton.control",
        "pelton.fn..results",
    ],
)
def test_foreign_topics_are_refused(topic: str) -> None:
    """What is no topic of the namespace is a ValueError that names it."""
    with pytest.raises(ValueError, match=re.escape(repr(topic))):
        TOPICS.parse(topic)


@pytest.mark.parametrize("name", ["", "9a", "a.b", "a b", "-a", "_a", "a" * 64, "ä", "a\n", "a/b", None])
def test_odd_names_are_refused(name: str) -> None:
    """Names Kafka or a file system could take for another are refused; the message says what names are."""
    with pytest.raises(ValueError, match="cannot name a function: a name is a letter"):
        check_name("function", name)
    with pytest.raises(ValueError, match="cannot name a function"):
        TOPICS.results(name)
    with pytest.raises(ValueError, match="cannot name a namespace"):
        Topics(name)


@pytest.mark.parametrize("name", ["a", "A9", "a-b_c", "a" * 63])
def test_good_names_are_taken(name: str) -> None:
    """A letter, then up to 62 letters, digits, underscores and hyphens."""
    assert check_name("function", name) == name


def test_spec_keys_go_there_and_back() -> None:
    """Registry keys name the thing; other keys of the same topic are told apart."""
    assert spec_key("f") == b"f/spec"
    assert parse_spec_key(b"f/spec") == "f"
    for other in (None, b"", b"f/paused", b"/spec", b"a.b/spec", b"\xff/spec", b"f/spec/spec"):
        assert parse_spec_key(other) is None
    assert instance_key("c", "i1") == b"c/i1"
    assert instance_key("", "d1") == b"deployer/d1"


def _plans(brokers: int) -> dict[str, TopicPlan]:
    plans = [*TOPICS.topic_plans_for_function(SPEC, brokers), *TOPICS.control_topic_plans(brokers)]
    return {plan.name: plan for plan in plans}


def test_calls_that_wait_never_expire() -> None:
    """Invocations and retries are kept for ever and give disk back in segments of 64 MiB."""
    plans = _plans(1)
    for name in (TOPICS.invocations(SPEC.name), TOPICS.retries(SPEC.name)):
        configs = plans[name].configs
        assert configs["retention.ms"] == "-1"
        assert configs["retention.bytes"] == "-1"
        assert configs["segment.bytes"] == str(64 * 1024 * 1024)
        assert configs["cleanup.policy"] == "delete"


def test_partitions_of_each_topic() -> None:
    """The spec sizes the invocations topic; all others have the numbers of the wire document."""
    partitions = {name: plan.partitions for name, plan in _plans(1).items()}
    assert partitions[TOPICS.invocations(SPEC.name)] == 12
    assert partitions[TOPICS.retries(SPEC.name)] == 4
    assert partitions[TOPICS.results(SPEC.name)] == 8
    assert partitions[TOPICS.dead_letters(SPEC.name)] == 1
    assert {partitions[TOPICS.control(topic)] for topic in Control} == {16}
    assert len(partitions) == 4 + len(Control)


def test_time_to_live_of_results_and_letters() -> None:
    """Results live a day, dead letters thirty, logs and requests for limits a day."""
    day = 24 * 3600 * 1000
    plans = _plans(1)
    assert plans[TOPICS.results(SPEC.name)].configs["retention.ms"] == str(day)
    assert plans[TOPICS.dead_letters(SPEC.name)].configs["retention.ms"] == str(30 * day)
    assert plans[TOPICS.control(Control.LOGS)].configs["retention.ms"] == str(day)
    assert plans[TOPICS.control(Control.LIMIT_REQUESTS)].configs["retention.ms"] == str(day)


def test_registries_are_compacted_and_never_expire() -> None:
    """State topics keep the last record of each key; only cancellations also expire."""
    plans = _plans(1)
    for topic in Control:
        configs = plans[TOPICS.control(topic)].configs
        if topic in (Control.LOGS, Control.LIMIT_REQUESTS):
            assert configs["cleanup.policy"] == "delete"
        elif topic is Control.CANCELLATIONS:
            assert configs["cleanup.policy"] == "compact,delete"
        else:
            assert configs["cleanup.policy"] == "compact"
            assert "retention.ms" not in configs


@pytest.mark.parametrize(
    ("brokers", "copies", "in_sync"), [(1, 1, "1"), (2, 2, "1"), (3, 3, "2"), (9, 3, "2")]
)
def test_copies_follow_the_brokers(brokers: int, copies: int, in_sync: str) -> None:
    """Three copies where there are three brokers, and then two must have a record to acknowledge it."""
    for plan in _plans(brokers).values():
        assert plan.replication_factor == copies
        assert plan.configs["min.insync.replicas"] == in_sync


def test_every_topic_stamps_broker_time_and_takes_the_largest_record() -> None:
    """All times are append times of the broker; the largest payload and dead letter fit everywhere."""
    for plan in _plans(3).values():
        assert plan.configs["message.timestamp.type"] == "LogAppendTime"
        assert plan.configs["max.message.bytes"] == str(MAX_RECORD_BYTES)
        assert plan.configs["unclean.leader.election.enable"] == "false"


def test_a_cluster_without_brokers_is_refused() -> None:
    """Zero copies is no plan."""
    with pytest.raises(ValueError, match="at least one broker"):
        TOPICS.control_topic_plans(0)
