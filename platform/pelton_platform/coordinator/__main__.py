"""The program of a worker instance: `python -m pelton_platform.coordinator --instance FILE`."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

from pelton_platform import telemetry
from pelton_platform.coordinator.instance import EXIT_FAILED, Instance, drain_seconds
from pelton_platform.coordinator.instance_file import InstanceFileError, read_instance_file
from pelton_platform.redaction import Redactor


def main(arguments: list[str] | None = None) -> int:
    """Runs an instance until it is asked to stop; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pelton_platform.coordinator", description=__doc__)
    parser.add_argument("--instance", required=True, type=Path, metavar="FILE", help="who this instance is")
    given = parser.parse_args(arguments)
    try:
        file = read_instance_file(given.instance)
        drain_s = drain_seconds(os.environ)
    except (InstanceFileError, ValueError) as error:
        print(f"coordinator: {error}", file=sys.stderr)
        return EXIT_FAILED
    # What is loaded by now stays, and a finished call leaves no cycles: full collections would only walk
    # calls that are still waiting.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    telemetry.set_up("coordinator", level=file.log_level.upper(), redact=Redactor(file.secrets))
    return Instance(file, drain_s).run()


if __name__ == "__main__":
    sys.exit(main())
