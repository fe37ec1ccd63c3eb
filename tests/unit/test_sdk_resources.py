"""What containers may ask for: CPU, memory, GPUs, ports, probes, and by what programs are scaled."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from pelton import Container, Handle, KafkaLag, Probe, function
from pelton.core.spec import LagSpec, ProbeSpec
from pelton.definitions import container_spec
from pelton.errors import DefinitionError
from pelton.loading import collecting

PROGRAM: dict[str, Any] = {"name": "job", "entrypoint": ["python", "main.py"]}


@pytest.mark.parametrize(
    ("cpu", "thousandths"),
    [
        (None, 0),
        (1, 1000),
        (0.5, 500),
        ("1", 1000),
        ("2.5", 2500),
        ("500m", 500),
        (" 250m ", 250),
        (0.01, 10),
    ],
)
def test_cpu_is_thousandths_of_a_core(cpu: Any, thousandths: int) -> None:
    """Numbers and texts, as Kubernetes writes them, mean the same cores."""
    assert Container(name="c", cpu=cpu).cpu == thousandths


@pytest.mark.parametrize(
    "cpu", [0, -1, True, float("nan"), float("inf"), "", "two", "1 core", "0m", 5000, []]
)
def test_what_is_no_number_of_cores_is_refused(cpu: Any) -> None:
    """The message says what cores look like."""
    with pytest.raises(DefinitionError, match="container 'c': cpu is cores"):
        Container(name="c", cpu=cpu)


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        (None, 0),
        (2**30, 2**30),
        ("512Mi", 512 * 2**20),
        ("8Gi", 8 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("512M", 512_000_000),
        ("100000k", 100_000_000),
        (str(2**26), 2**26),
    ],
)
def test_memory_is_bytes(memory: Any, size: int) -> None:
    """Units with an i are powers of 1024, those without of 1000."""
    assert Container(name="c", memory=memory).memory == size


@pytest.mark.parametrize("memory", [0, 1024, True, 1.5e9, "", "8 Gi b", "1Mi", "8GiB", "999Ti", -(2**30)])
def test_what_is_no_size_of_memory_is_refused(memory: Any) -> None:
    """Also sizes in which no Python loads anything."""
    with pytest.raises(DefinitionError, match="container 'c': memory is bytes, or a size like"):
        Container(name="c", memory=memory)


@pytest.mark.parametrize(("gpu", "text"), [(None, ""), (1, "1"), ("A100", "A100"), ("A100:2", "A100:2")])
def test_gpu_is_a_number_or_a_kind(gpu: Any, text: str) -> None:
    """It is kept as it was said."""
    assert Container(name="c", gpu=gpu).gpu == text


@pytest.mark.parametrize("gpu", [0, True, "", "A100:0", "a b", 1.0, "0"])
def test_what_is_no_gpu_is_refused(gpu: Any) -> None:
    """The message shows what to write."""
    with pytest.raises(DefinitionError, match="gpu is how many"):
        Container(name="c", gpu=gpu)


def test_functions_and_classes_take_resources() -> None:
    """Keywords of a function are those of its own container."""

    @function(cpu="500m", memory="64Mi", gpu=1)
    def f() -> None: ...

    assert (f.container.cpu, f.container.memory, f.container.gpu) == (500, 64 * 2**20, "1")


def test_a_port_makes_a_program_ready_when_it_listens() -> None:
    """Without a probe of its own a program with a port is asked there; one without is ready at once."""
    assert Container(**PROGRAM, port=8080).readiness == ProbeSpec("tcp", period_ms=500)
    assert Container(**PROGRAM).readiness is None
    assert Container(**PROGRAM, port=8080).liveness is None


def test_probes_say_what_to_ask() -> None:
    """Each kind, with its times as numbers or durations."""
    made = Container(
        **PROGRAM,
        readiness=Probe.http(
            "/healthz?deep=1", port=81, period=0.5, timeout=timedelta(seconds=2), failures=5
        ),
        liveness=Probe.exec(["python", "check.py"], period=10),
    )
    assert made.readiness == ProbeSpec("http", 81, "/healthz?deep=1", (), 500, 2000, 5)
    assert made.liveness == ProbeSpec("exec", 0, "", ("python", "check.py"), 10_000, 1_000, 3)
    assert Probe.tcp(port=9).spec == ProbeSpec("tcp", 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Probe.http("healthz"), "path is a path like"),
        (lambda: Probe.http("/a b"), "path is a path like"),
        (lambda: Probe.http("/a\r\nHost: x"), "path is a path like"),
        (lambda: Probe.tcp(port=0), "port is between 1 and 65535"),
        (lambda: Probe.tcp(period=0), "period is between 1 ms"),
        (lambda: Probe.tcp(timeout=-1), "timeout is between 1 ms"),
        (lambda: Probe.tcp(failures=0), "failures is between 1"),
        (lambda: Probe.exec([]), "command is empty"),
        (lambda: Probe.exec("true"), "command is a list of str"),
        (lambda: Container(**PROGRAM, readiness=Probe.http()), "readiness asks at a port"),
        (lambda: Container(**PROGRAM, liveness=Probe.tcp()), "liveness asks at a port"),
        (lambda: Container(**PROGRAM, liveness=cast(Any, "/healthz")), "liveness is a Probe"),
        (lambda: Container(**PROGRAM, port=70_000), "port is between"),
        (lambda: Container(name="c", port=80), "port= is for programs"),
        (lambda: Container(name="c", readiness=Probe.tcp(port=1)), "readiness= is for programs"),
        (lambda: Container(name="c", scale_on=KafkaLag("t", "g")), "scale_on= is for programs"),
        (lambda: Container(**PROGRAM, scale_on=cast(Any, "t")), "scale_on is a KafkaLag"),
        (lambda: Container(**PROGRAM, min_instances=0), "nothing would start an instance"),
        (lambda: KafkaLag("a b", "g"), "topic is the name of a topic"),
        (lambda: KafkaLag("t", ""), "group is the id of a consumer group"),
        (lambda: KafkaLag("t", "g", 0), "per_instance is between 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(make: Any, message: str) -> None:
    """At definition, with what is wrong and the fix."""
    with pytest.raises(DefinitionError, match=message):
        make()


def test_the_registry_is_told_of_all_of_it() -> None:
    """Everything a container asks for is in its spec, and changes its digest."""
    asked = Container(
        **PROGRAM,
        cpu=1,
        memory="1Gi",
        gpu="A100",
        port=80,
        min_instances=0,
        max_instances=5,
        scale_on=KafkaLag("orders", "readers", 10),
        liveness=Probe.tcp(),
    )
    spec = container_spec(asked, functions=(), version=1, bundle="b", folder=Path("/"))
    assert (spec.cpu, spec.memory, spec.gpu, spec.port) == (1000, 2**30, "A100", 80)
    assert spec.lag == LagSpec("orders", "readers", 10)
    assert spec.readiness is not None
    assert spec.liveness == ProbeSpec("tcp")
    plain = container_spec(Container(**PROGRAM), functions=(), version=1, bundle="b", folder=Path("/"))
    assert plain.digest != spec.digest


def test_a_handle_is_of_no_use_while_its_file_is_loaded() -> None:
    """Under `pelton deploy` the container is not there yet: the message says where the use belongs."""
    with collecting("file"), pytest.raises(DefinitionError, match="if __name__"):
        _ = Handle("job").info


@pytest.mark.parametrize("count", [-1, True, 1.5, 100_000])
def test_a_handle_refuses_what_is_no_number_of_instances(count: Any) -> None:
    """Before anything is asked of the platform."""
    with pytest.raises(DefinitionError, match="count is"):
        Handle("job").scale(count)


def test_a_handle_refuses_what_is_no_command() -> None:
    """A text is no list of words: nothing is given to a shell."""
    with pytest.raises(DefinitionError, match="command is a list of str"):
        Handle("job").exec("ls -l")
