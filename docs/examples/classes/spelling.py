"""One loaded model per executor: a class whose methods run on the platform."""

import difflib
from collections.abc import Iterator

import pelton


@pelton.cls(max_concurrent_requests=4)
class Speller:
    """Knows some words; each executor loads them once."""

    def __init__(self) -> None:
        self.words: set[str] = set()

    @pelton.on_start
    def load(self) -> None:
        """Takes long in real life: reads a model, opens a pool of connections."""
        self.words = {"kafka", "topic", "partition", "offset", "consumer"}
        print("words loaded")

    @pelton.method
    def correct(self, word: str) -> str:
        """The known word that is most like the given one."""
        return next(iter(difflib.get_close_matches(word, self.words, n=1)), word)

    @pelton.method
    def check(self, text: str) -> Iterator[str]:
        """Words of a text that are not known, one by one."""
        for word in text.split():
            if word not in self.words:
                yield word

    @pelton.on_stop
    def close(self) -> None:
        """Before the executor ends, after its last call."""
        print("words dropped")


if __name__ == "__main__":
    print(Speller.correct("partiton"))
    print(list(Speller.check("kafka has topcs")))
