"""Runs the governor: `python -m pelton_platform.governor --settings FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pelton_platform.deploy.settings import DeployerSettings
from pelton_platform.governor.service import serve


def main(arguments: list[str]) -> None:
    """Read the settings file and serve until told to stop."""
    if len(arguments) != 2 or arguments[0] != "--settings":
        raise SystemExit("usage: python -m pelton_platform.governor --settings FILE")
    settings = DeployerSettings.from_json(json.loads(Path(arguments[1]).read_text()))
    serve(settings.config, settings.log_level)


if __name__ == "__main__":
    main(sys.argv[1:])
