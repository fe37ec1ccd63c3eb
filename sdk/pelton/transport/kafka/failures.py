"""What Kafka's errors mean to a caller: certain or not, worth another try or not, and in which words."""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError, KafkaException

from pelton.errors import TransportError
from pelton.transport.log import KafkaFailure

# The broker, or the client before sending, looked at the record and refused it: it is not in the log.
_CERTAIN: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.INVALID_REQUIRED_ACKS,
        KafkaError.POLICY_VIOLATION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._INVALID_ARG,
    }
)
# A topic that was just made, or whose leader is moving: the same question may have an answer in a moment.
UNSETTLED: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._WAIT_COORD,
    }
)
MISSING: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
)


def error_of(error: KafkaException) -> KafkaError:
    """The Kafka error inside an exception of the client."""
    inner = error.args[0] if error.args else None
    return inner if isinstance(inner, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def is_passing(error: KafkaError) -> bool:
    """Whether the same question may have an answer in a moment."""
    # A controller that was held up takes its brokers for dead until their next heartbeat. The code alone also
    # stands for a replication factor above the number of brokers, which stays wrong.
    fenced = error.code() == KafkaError.INVALID_REPLICATION_FACTOR and "fenced" in error.str()
    return fenced or error.code() in UNSETTLED or error.retriable()


def failure_of(error: KafkaError) -> KafkaFailure:
    """A delivery report's error as a value."""
    return KafkaFailure(error.code(), error.name(), error.str(), error.code() in _CERTAIN)


def transport_error(what: str, error: KafkaError, servers: str) -> TransportError:
    """The error of a question to the broker that found no answer."""
    return TransportError(f"{what} failed at {servers}: {error.str()} ({error.name()})")
