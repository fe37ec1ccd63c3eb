"""Hooks and objects in real executors: made once, before the first call, and ended after the last one."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.executor_rig import executor_of, pool_of

pytestmark = pytest.mark.integration

MODULE = """
    import os, pelton
    state = []

    @pelton.on_start
    {start} first(): state.append(os.getcwd().endswith("bundle"))

    @pelton.on_start
    def second(): state.append("second")

    @pelton.on_stop
    {start} last():
        with open({out!r}, "a") as file: file.write("last ")

    @pelton.on_stop
    def before():
        with open({out!r}, "a") as file: file.write("before ")

    {run} run(value): return [value, state]
"""

CLASS = """
    import asyncio, os, pelton

    @pelton.cls
    class Model:
        def __init__(self): self.calls = 0
        @pelton.on_start
        async def load(self): self.loop = asyncio.get_running_loop()
        @pelton.method
        {run} add(self, value):
            self.calls += 1
            same = "{run}" == "def" or self.loop is asyncio.get_running_loop()
            return [value, self.calls, same]
        @pelton.on_stop
        async def close(self):
            with open({out!r}, "a") as file: file.write(f"closed after {{self.calls}}")
"""


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_hooks_of_a_module_run_once_per_executor(tmp_path: Path, kind: str) -> None:
    """In the folder of the sources, in order, before the first call; at the end in reverse order."""
    out = tmp_path / "out"
    word = "def" if kind == "sync" else "async def"
    source = MODULE.format(run=word, start=word, out=str(out))
    with executor_of(tmp_path, source, kind=kind, slots=2) as rig:
        for value in range(3):
            assert rig.call(value).value == [value, [True, "second"]]
        assert not out.exists()
        rig.pool.stop(rig.executor, 5.0)
        assert rig.wait_exit().code == 0
    assert out.read_text() == "before last "


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_class_has_one_object_per_executor(tmp_path: Path, kind: str) -> None:
    """All calls see the same one; async hooks run on the loop that calls run on; it is ended at the end."""
    out = tmp_path / "out"
    source = CLASS.format(run="def" if kind == "sync" else "async def", out=str(out))
    with executor_of(tmp_path, source, kind=kind, qualname="Model.add") as rig:
        found = [rig.call(value).value for value in range(3)]
        assert found == [[0, 1, True], [1, 2, True], [2, 3, True]]
        rig.pool.stop(rig.executor, 5.0)
        assert rig.wait_exit().code == 0
    assert out.read_text() == "closed after 3"


@pytest.mark.parametrize("source", ["hook", "object"])
def test_hook_that_fails_is_why_the_executor_cannot_start(tmp_path: Path, source: str) -> None:
    """As if the module had failed: with the type, the message and the user's own line."""
    sources = {
        "hook": """
            import pelton
            @pelton.on_start
            def load(): raise OSError("no model here")
            def run(): return 1
        """,
        "object": """
            import pelton
            @pelton.cls
            class Model:
                def __init__(self): raise OSError("no model here")
                @pelton.method
                def run(self): return 1
        """,
    }
    qualname = {"hook": "run", "object": "Model.run"}[source]
    with pool_of(tmp_path, sources[source], qualname=qualname) as rig:
        rig.executor = rig.pool.start(isolated=False)
        ended = rig.wait_exit()
        assert ended.broken is not None
        assert (ended.broken.type, ended.broken.message) == ("OSError", "no model here")
        assert "worker.py" in ended.broken.traceback


def test_hook_that_fails_at_the_end_is_told_and_stops_no_other(tmp_path: Path) -> None:
    """Its traceback is in the log of the executor, which ends as usual."""
    source = """
        import pelton
        @pelton.on_stop
        def first():
            print("first ran", flush=True)
        @pelton.on_stop
        def second(): raise OSError("cannot close")
        def run(): return 1
    """
    with executor_of(tmp_path, source) as rig:
        assert rig.call().value == 1
        rig.pool.stop(rig.executor, 5.0)
        assert rig.wait_exit().code == 0
        told = "\n".join(rig.lines())
    assert "OSError: cannot close" in told
    assert "first ran" in told
