"""No client keeps others from the service: not by silence, by numbers, by not reading, nor by what is no HTTP."""

import contextlib
import json
import signal
import threading
import time

import pytest
import requests

from tests.serve.served import TIMEOUT, command, connected, post, served, wait_until
from tljax.serve.connections import Connection
from tljax.serve.desk import InferenceQueue

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


def rest(connection):
    """What comes until the server closes the connection."""
    found = b""
    try:
        while more := connection.recv(1 << 16):
            found += more
    except ConnectionError:  # as it does where the client still sends
        pass
    return found


def test_of_200_at_once_each_is_answered_or_told_when_to_ask_again(classifier, photos, blocked):
    data, (desk, _, go_on) = (photos / "red/000.png").read_bytes(), blocked
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    with served(classifier, desk=desk, places=2) as url, contextlib.ExitStack() as stack:
        asking = [stack.enter_context(connected(url)) for _ in range(200)]
        for one in asking:
            one.sendall(head.encode() + data)
        wait_until(lambda: requests.get(f"{url}health", timeout=TIMEOUT).json()["under_way"] == 2)
        go_on.set()
        found = [rest(one) for one in asking]
    statuses = [one.split()[1] for one in found]
    assert statuses.count(b"200") >= 2 and statuses.count(b"503") == 200 - statuses.count(b"200")
    for one in found:
        top, _, body = one.partition(b"\r\n\r\n")
        assert json.loads(body)
        assert b"503" not in top or b"\r\nretry-after: 1\r\n" in top


@pytest.mark.parametrize("sent", [b"", HEALTH])
def test_hundreds_of_silent_connections_shut_nobody_out(url, sent):
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connected(url)).sendall(sent)
        assert requests.get(f"{url}health", timeout=TIMEOUT).status_code == 200


@pytest.mark.parametrize(
    "sent, then, answers",
    [
        (b"", b"", 0),
        (HEALTH, b"", 0),
        (HEALTH, b"a", 0),
        (HEALTH + b"\r\n", b"", 1),
        (HEALTH + b"\r\n", b"GET", 1),
        (2 * (HEALTH + b"\r\n") + HEALTH, b"a", 2),
        (HEALTH + b"Content-Length: 1000000\r\n\r\n", b"a", 1),
    ],
    ids=["silent", "half", "dripping", "kept", "letters", "after two", "body that nobody reads"],
)
def test_a_connection_without_a_whole_head_is_closed(classifier, monkeypatch, sent, then, answers):
    monkeypatch.setattr(Connection, "patience", 0.3)
    with served(classifier) as url, connected(url) as slow:
        slow.sendall(sent)
        slow.settimeout(0.05)
        found, closed = b"", False
        until = time.monotonic() + TIMEOUT
        while not closed:
            assert time.monotonic() < until
            try:
                more = slow.recv(1 << 16)
                found, closed = found + more, not more
            except TimeoutError:
                with contextlib.suppress(ConnectionError):  # recv will say so, too
                    slow.sendall(then)
            except ConnectionError:
                closed = True
    assert found.count(b"HTTP/1.1 200 OK") == answers == found.count(b"HTTP/1.1")


def test_a_client_that_does_not_read_its_answers_is_left(classifier, monkeypatch):
    monkeypatch.setattr(Connection, "patience", 0.3)

    def ask_on(connection):
        while True:
            connection.sendall(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)

    # Else the kernel takes megabytes of answers, which a busy machine needs a minute to write, before one waits.
    with (
        served(classifier, send_buffer=4096) as url,
        connected(url, SO_RCVBUF=4096) as deaf,
        pytest.raises(ConnectionError),
    ):
        ask_on(deaf)


def test_a_body_or_an_answer_that_takes_its_time_is_not_cut_off(classifier, photos, monkeypatch, blocked):
    monkeypatch.setattr(Connection, "patience", 0.2)
    data, (desk, _, go_on) = (photos / "red/000.png").read_bytes(), blocked

    def parts():
        yield data[:100]
        threading.Event().wait(0.5)
        yield data[100:]
        threading.Timer(0.5, go_on.set).start()

    with served(classifier, desk=desk, places=2) as url, requests.Session() as session:
        found = session.post(f"{url}predict", data=parts(), timeout=TIMEOUT)
        assert (found.status_code, go_on.is_set()) == (200, True)


def test_connections_beyond_the_most_are_closed_until_there_is_room(classifier, monkeypatch):
    monkeypatch.setattr(Connection, "most", 3)
    with served(classifier) as url:
        with connected(url), connected(url), connected(url) as third:
            third.sendall(HEALTH + b"\r\n")
            assert third.recv(100).startswith(b"HTTP/1.1 200 ")
            with connected(url) as fourth:
                assert rest(fourth) == b""

        def answers():
            with connected(url) as again:
                again.sendall(HEALTH + b"Connection: close\r\n\r\n")
                return rest(again).startswith(b"HTTP/1.1 200 ")

        wait_until(answers)


def test_an_error_of_ours_is_logged_and_500(classifier, photos, caplog):
    desk = InferenceQueue(classifier, places=1)
    desk.say = lambda *_, **__: 1 / 0
    with served(classifier, desk=desk) as url:
        assert post(url, (photos / "red/000.png").read_bytes()).status_code == 500
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.slow
def test_what_clients_send_fills_no_terminal(finished):
    process = command(finished, "--port", "0")
    chunked, wrong = HEALTH + b"Transfer-Encoding: chunked\r\n\r\n", b"no chunk\r\n"
    try:
        url = process.stdout.readline().split()[4]
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        assert post(url, b"--b\r\nno header\r\n\r\n", headers=form).status_code == 400
        for sent in (b"\x16\x03\x01 no HTTP\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n", chunked + wrong):
            with connected(url) as client:
                client.sendall(sent)
                assert rest(client).startswith(b"HTTP/1.1 400 ")
        with connected(url) as client:
            client.sendall(chunked)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            client.sendall(wrong)
            rest(client)
        with connected(url) as client:
            client.sendall(HEALTH + b"Upgrade: websocket\r\nConnection: upgrade, close\r\n\r\n")
            assert rest(client).startswith(b"HTTP/1.1 200 ")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
