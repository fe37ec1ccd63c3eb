"""Runs a command where an instance runs: `python -m pelton_platform.deploy.entering FILE COMMAND...`.

It has the files, the environment and the secrets of the instance, and ends with it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pelton.core.spec import SecretRef
from pelton.errors import PeltonError
from pelton_platform.deploy import image_root
from pelton_platform.deploy.home import Home
from pelton_platform.deploy.instances import machine_environment
from pelton_platform.deploy.secret_store import SecretStore

EXIT_NOT_STARTED = 127


def main(arguments: list[str]) -> int:
    """Become the command."""
    file, command = Path(arguments[0]), arguments[1:]
    settings = json.loads(file.read_text())
    # The file lies in HOME/run/instances/INSTANCE.
    home = Home(file.absolute().parents[3])
    refs = [SecretRef(**ref) for ref in settings["secret_variables"]]
    try:
        values = SecretStore(home).values_for(settings["container"], refs)
    except PeltonError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_STARTED
    env = {**machine_environment(os.environ), **settings["env"], **values}
    root, folder = settings["root"], settings["workdir"]
    if root:
        try:
            image_root.enter(root)
        except OSError:
            command = image_root.rewritten(command, root)
            folder = root + folder if folder else ""
    try:
        os.chdir(folder or settings["folder"])
        os.execvpe(command[0], command, env)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
    return EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
