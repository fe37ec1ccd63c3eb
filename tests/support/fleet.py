"""A simulated fleet: instances with slots, calls that arrive by a curve, and scaling decisions over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from pelton.core.flow import Flow
from pelton.core.scaling import Bounds, Needs, desired, needed, remember

LOOK_MS = 200
START_MS = 1_500
"""An instance is ready so long after it was started."""


@dataclass
class Fleet:
    """One function with its instances; time goes on in steps of one look.

    Attributes:
        bounds: Of its container.
        partitions: Of its invocations.
        sizes: Instances (starting ones too) after each look.
        waits: How long each call waited, in milliseconds.
    """

    bounds: Bounds
    partitions: int = 1_000
    sizes: list[int] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)

    def run(self, seconds: float, rate: Callable[[float], float], service_ms: int, stuck: int = 0) -> None:
        """Let time pass.

        Args:
            seconds: How long.
            rate: Calls a second at a time in seconds.
            service_ms: How long a call takes.
            stuck: So many calls, the first ones, never end.
        """
        flow = Flow()
        needs: Needs = ()
        queue: deque[int] = deque()
        ready_at: list[int] = []
        slots: list[list[float]] = []
        arrived, carried, ended = 0, 0.0, 0
        dice = Random(1)
        for now_ms in range(0, round(seconds * 1000), LOOK_MS):
            carried += rate(now_ms / 1000) * LOOK_MS / 1000
            came = int(carried)
            carried -= came
            arrived += came
            queue.extend([now_ms] * came)
            short = 0.0
            for one in range(len(slots)):
                # A slot takes as many calls in a look as fit into it.
                left = [end for end in slots[one] if end > now_ms]
                ended += len(slots[one]) - len(left)
                slots[one] = left
                room = self.bounds.slots - len(left)
                if ready_at[one] > now_ms:
                    continue
                fits = room * max(1, LOOK_MS // service_ms)
                for _ in range(min(fits, len(queue))):
                    since = queue.popleft()
                    self.waits.append(now_ms - since)
                    if stuck:
                        stuck -= 1
                        slots[one].append(float("inf"))
                        fits -= LOOK_MS // service_ms
                    elif service_ms >= LOOK_MS:
                        slots[one].append(now_ms + service_ms)
                    else:
                        ended += 1
                        short += service_ms / LOOK_MS
            # Of calls shorter than a look some happen to run when somebody looks.
            seen = int(short + dice.random())
            running = sum(map(len, slots)) + seen
            flow.observe(now_ms, arrived, arrived - ended + seen, running)
            want = needed([flow.load(self.partitions)], self.bounds.slots, len(slots))
            needs = remember(
                needs, now_ms, want.instances, max(self.bounds.keep_warm_ms, self.bounds.cool_down_ms)
            )
            ready = sum(at <= now_ms for at in ready_at)
            count = desired(self.bounds, needs, now_ms, ready)
            while len(slots) < count:
                slots.append([])
                ready_at.append(now_ms + START_MS)
            for idle in [one for one in range(len(slots)) if not slots[one]][: max(0, len(slots) - count)][
                ::-1
            ]:
                del slots[idle], ready_at[idle]
            self.sizes.append(len(slots))

    def between(self, start_s: float, end_s: float) -> Sequence[int]:
        """Sizes between two times."""
        return self.sizes[round(start_s * 1000 / LOOK_MS) : round(end_s * 1000 / LOOK_MS)]

    def reversals(self, start_s: float = 0.0, end_s: float = 1e9) -> int:
        """How often growing turned into shrinking or the other way."""
        last, turns = 0, 0
        sizes = self.between(start_s, min(end_s, len(self.sizes) * LOOK_MS / 1000))
        for before, after in pairwise(sizes):
            step = (after > before) - (after < before)
            if step and last and step != last:
                turns += 1
            last = step or last
        return turns
