"""uvicorn's HTTP/1.1 with an end to its patience: without, who opens connections and is silent shuts others out."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closes a connection on which it is the client's turn for too long.

    That is until a whole request head has come, of the first request and of each one after an answer, and while the
    client does not read what it asked for. The time that a body has is the application's.

    Attributes:
      patience: seconds of a turn.
      most: connections at once; a further one is closed unread. Leaves room for those that are accepted before they
        are counted, within the 1,024 files that a process often may open.
    """

    patience = 10.0
    most = 512
    _deadline: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_deadline()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP; where that follows a request that has its answer there is nothing left to say."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # else the application's answer would be a second one, which h11 refuses
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _watch(self) -> None:
        answered = self.cycle is None or self.cycle.response_complete
        if not (answered or self.flow.write_paused or self.transport.is_closing()):
            self._unset_deadline()
        elif self._deadline is None:
            self._set_deadline()

    def _set_deadline(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._deadline = self.loop.call_later(self.patience, self._end)

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:  # it reads, only slowly
            self._set_deadline()
        else:
            self.transport.abort()  # close() would wait until all is sent
