"""Celery tasks that call functions, from the processes of a prefork pool: a way over, task by task.

Run it with `celery --app celery_tasks worker --pool prefork --concurrency 2`.
"""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from texts import shout

folder = Path(os.environ.get("CELERY_FOLDER", "celery-messages")).absolute()
for name in ("messages", "done", "results"):
    (folder / name).mkdir(parents=True, exist_ok=True)

app = Celery("celery_tasks", broker="filesystem://", backend=f"file://{folder / 'results'}")
app.conf.broker_transport_options = {
    "data_folder_in": str(folder / "messages"),
    "data_folder_out": str(folder / "messages"),
    "processed_folder": str(folder / "done"),
    "control_folder": str(folder / "control"),
}


@app.task  # type: ignore[untyped-decorator]  # Celery has no types
def shout_twice(text: str) -> list[str]:
    """Runs in a process of the pool; what it calls runs on Pelton."""
    return list(shout.map([text, f"{text}, {text}"]))
