"""Which files the embedded Apache Kafka is made of, with the SHA-256 sum and size of each.

The list beside this module is complete (the broker's own dependencies included), so nothing is decided when
it is fetched: a file either has the sum written here or it is not used. To move to another version, change
`ROOTS` and run `python -m pelton_platform.embedded.artifacts`, which resolves the dependencies and writes
the list anew; then run the tests and read the difference.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pelton_platform.embedded.failure import EmbeddedKafkaError

KAFKA_VERSION = "4.2.2"
ROOTS = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")
LIST_PATH = Path(__file__).with_name("artifacts.txt")

_HEADER = """\
# Every file that the embedded Apache Kafka is made of: SHA-256, size in bytes, group:artifact:version.
# Written by `python -m pelton_platform.embedded.artifacts`; the order is the order of the class path.
"""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One jar, named as its registry names it.

    Attributes:
        group: Group id.
        name: Artifact id.
        version: Exact version.
        sha256: Sum of the file, 64 hexadecimal digits.
        size: Bytes of the file.
    """

    group: str
    name: str
    version: str
    sha256: str
    size: int

    @property
    def coordinate(self) -> str:
        """The name that a person or a build tool would use: `group:artifact:version`."""
        return f"{self.group}:{self.name}:{self.version}"

    @property
    def filename(self) -> str:
        """The name of the file in the cache."""
        return f"{self.name}-{self.version}.jar"


def parse(text: str) -> tuple[Artifact, ...]:
    """Read a list of artifacts.

    Raises:
        EmbeddedKafkaError: A line is malformed, or two artifacts would share a file.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            sha256, size, coordinate = line.split()
            group, name, version = coordinate.split(":")
            if len(bytes.fromhex(sha256)) != hashlib.sha256().digest_size:
                raise ValueError(sha256)
            found.append(Artifact(group, name, version, sha256, int(size)))
        except ValueError as error:
            raise EmbeddedKafkaError(
                f"line {number} of {LIST_PATH} is damaged ({line!r}); install pelton again"
            ) from error
    if not found or len({artifact.filename for artifact in found}) != len(found):
        raise EmbeddedKafkaError(f"{LIST_PATH} is empty or names a file twice; install pelton again")
    return tuple(found)


@functools.cache
def pinned() -> tuple[Artifact, ...]:
    """Return the artifacts of this release in the order of the class path."""
    return parse(LIST_PATH.read_text())


def list_digest(artifacts: Iterable[Artifact]) -> str:
    """Return a short name of exactly these files; a cache folder is named by it."""
    text = "".join(f"{artifact.sha256} {artifact.coordinate}\n" for artifact in artifacts)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 sum of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_afresh(folder: Path) -> tuple[Artifact, ...]:
    """Resolve `ROOTS` with all that they need at run time, and sum what was downloaded into `folder`."""
    from jgo.maven import MavenContext

    context = MavenContext(repo_cache=folder)
    roots, needed = context.resolver.resolve([context.create_dependency(root) for root in ROOTS])
    result = []
    for dependency in [*roots, *(d for d in needed if d.scope in ("compile", "runtime"))]:
        path = dependency.artifact.resolve()
        result.append(
            Artifact(
                dependency.groupId,
                dependency.artifactId,
                dependency.version,
                file_sha256(path),
                path.stat().st_size,
            )
        )
    return tuple(result)


def main() -> int:
    """Write the list anew for the versions in `ROOTS`."""
    with tempfile.TemporaryDirectory() as folder:
        artifacts = resolve_afresh(Path(folder))
    lines = [f"{artifact.sha256} {artifact.size} {artifact.coordinate}\n" for artifact in artifacts]
    LIST_PATH.write_text(_HEADER + "".join(lines))
    print(f"{LIST_PATH}: {len(artifacts)} artifacts", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
