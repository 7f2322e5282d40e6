"""A log as a store would keep it: every complete node in a dictionary."""

from app.chain.bulk import split
from app.chain.merkle import LogAppend, LogState, append


class StoredLog:
    def __init__(self, *batches: list[bytes]) -> None:
        self.state = LogState()
        self.nodes: dict[tuple[int, int], bytes] = {}
        for batch in batches:
            self.apply(append(self.state, batch))

    def apply(self, prepared: LogAppend) -> None:
        for run in prepared.runs:
            for index, node in enumerate(split(run.hashes), run.start):
                assert (run.level, index) not in self.nodes, "a complete node never changes"
                self.nodes[run.level, index] = node
        self.state = prepared.state

    def read(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]
