"""The service says what `predict` says, of pictures only, as many and as large as it was told, to whom it was told."""

import base64
import dataclasses
import io
import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pytest
import requests
from openapi_spec_validator import validate
from PIL import Image

from tests import tiny
from tests.data import bad_images, odd_pictures
from tests.serve.served import TIMEOUT, command, connected, post, served, wait_until
from tljax.inference import batch_predict
from tljax.inference.classifier import load
from tljax.inference.grad_cam import make_grad_cam
from tljax.report.plots import heat_over
from tljax.serve.__main__ import bound
from tljax.serve.app import Limits, about
from tljax.serve.desk import STRENGTH


@pytest.fixture(scope="module")
def described(url):
    return requests.get(f"{url}openapi.json", timeout=TIMEOUT).json()


def is_as_described(response, described):
    """Whether a JSON answer is what the description says of its path, method and status."""
    path = "/" + response.url.split("/", 3)[3].partition("?")[0]
    one = described["paths"][path][response.request.method.lower()]["responses"][str(response.status_code)]
    schema = one["content"]["application/json"]["schema"] | {"components": described["components"]}
    jsonschema.validate(response.json(), schema)
    return True


def opened(data_url):
    kind, _, data = data_url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_it_says_what_predict_says(url, classifier, photos, described):
    for name in ("red/000.png", "blue/003.png"):
        (expected,) = batch_predict.ask(classifier, batch_predict.find_pictures([str(photos / name)], bytes))
        found = post(url, (photos / name).read_bytes())
        assert is_as_described(found, described)
        (answer,) = found.json()["answers"]
        assert set(answer) == {"top"}
        assert [one["class"] for one in answer["top"]] == [name for name, _ in expected.best]
        assert [one["probability"] for one in answer["top"]] == pytest.approx([p for _, p in expected.best], abs=1e-5)


def test_many_at_once_get_the_answers_that_each_gets_alone(url, photos):
    pictures = [(photos / f"{c}/{i:03}.png").read_bytes() for c in tiny.CLASSES for i in range(5)]
    alone = [post(url, data).json() for data in pictures]
    with ThreadPoolExecutor(15) as pool:
        assert list(pool.map(lambda data: post(url, data).json(), pictures)) == alone


@pytest.mark.parametrize("of", [None, "green"])
def test_heat_is_grad_cam_over_the_square_that_the_network_saw(url, classifier, photos, described, of):
    data = (photos / "red/001.png").read_bytes()
    found = post(url, data, query=f"?of={of}" if of else "?heat=true")
    assert is_as_described(found, described)
    (answer,) = found.json()["answers"]
    best = answer["top"][0]["class"]
    assert answer["of"] == (of or best)
    square = classifier.see(data)
    np.testing.assert_array_equal(opened(answer["picture"]), square)
    _, heat = make_grad_cam(classifier)(square[None], [classifier.classes.index(of or best)])
    expected = heat_over(square, np.asarray(heat[0]), strength=STRENGTH)
    assert np.abs(opened(answer["heat"]).astype(int) - expected).max() <= 1


def test_the_network_sees_of_a_request_what_it_sees_of_a_file(url, classifier):
    for name, odd in odd_pictures.make().items():
        (answer,) = post(url, odd.data, query="?heat=true").json()["answers"]
        np.testing.assert_array_equal(opened(answer["picture"]), classifier.see(odd.data), err_msg=name)


def test_a_picture_taken_sideways_is_seen_upright(url):
    upright, file = bad_images.picture(64, 48), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    seen = opened(post(url, file.getvalue(), query="?heat=true").json()["answers"][0]["picture"])
    plain = bad_images.encoded("PNG", upright)
    np.testing.assert_array_equal(seen, opened(post(url, plain, query="?heat=true").json()["answers"][0]["picture"]))


def test_a_form_has_several_and_each_has_its_answer_or_its_reason(url, photos, described):
    good = (photos / "red/000.png").read_bytes()
    files = [("image", ("a.png", good)), ("image", ("<b>.jpg", b"no picture")), ("image", ("c.png", good))]
    found = post(url, files=files, query="?top=1")
    assert is_as_described(found, described)
    a, b, c = found.json()["answers"]
    assert [one["file"] for one in (a, b, c)] == ["a.png", "<b>.jpg", "c.png"]
    assert a["top"] == c["top"] == post(url, good, query="?top=1").json()["answers"][0]["top"]
    assert set(b) == {"file", "error"} and "not an image" in b["error"]
    found = post(url, files=files[1:2] * 2)
    assert found.status_code == 415 and found.json()["detail"].startswith("none of 2 pictures can be read; the first: ")


def test_every_kind_of_file_is_a_picture_or_415_with_its_reason(classifier, described):
    with served(classifier, most_bytes=60_000_000) as url, requests.Session() as session:
        for name, kind in bad_images.kinds().items():
            found = session.post(f"{url}predict", data=kind.data, timeout=TIMEOUT)
            assert is_as_described(found, described), name
            assert found.status_code in (200, 415), name
            if kind.read is not None:
                assert (found.status_code == 200) == kind.read, name
            if found.status_code == 415 and kind.reason:
                with pytest.raises(ValueError) as error:
                    classifier.see(kind.data)
                assert found.json()["detail"] == error.value.reason


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_413_whether_its_length_was_announced_or_not(classifier, described, announced):
    with served(classifier, most_bytes=100_000) as url:
        for size in (100_001, 5_000_000):
            parts = (bytes(50_000) for _ in range(-(-size // 50_000)))
            found = post(url, bytes(size) if announced else parts)
            assert (found.status_code, found.text) == (413, "Content Too Large")
        assert post(url, files=[("image", ("a.png", bytes(100_001)))]).status_code == 413
        assert post(url, bytes(100_000)).status_code == 415


def test_too_many_pictures_in_a_minute_are_429_and_say_when_again(classifier, photos, described):
    data = (photos / "red/000.png").read_bytes()
    with served(classifier, per_minute=3) as url:
        assert [post(url, data).status_code for _ in range(4)] == [200, 200, 200, 429]
        found = post(url, data)
        assert is_as_described(found, described)
        assert 1 <= int(found.headers["Retry-After"]) <= 60
        assert requests.get(f"{url}health", timeout=TIMEOUT).status_code == 200
    with served(classifier, per_minute=3) as url:  # a form counts as its pictures
        files = [("image", ("a.png", data))] * 2
        assert [post(url, files=files).status_code for _ in range(2)] == [200, 429]


def test_a_full_queue_is_503_and_the_page_still_answers(classifier, photos, described, blocked):
    data, (desk, begun, go_on) = (photos / "red/000.png").read_bytes(), blocked
    with served(classifier, desk=desk, places=2) as url, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, url, data) for _ in range(2)]
        try:
            assert begun.wait(TIMEOUT)
            wait_until(lambda: requests.get(f"{url}health", timeout=TIMEOUT).json()["under_way"] == 2)
            found = post(url, data)
            assert is_as_described(found, described)
            assert (found.status_code, found.headers["Retry-After"]) == (503, "1")
            assert requests.get(url, timeout=TIMEOUT).status_code == 200
        finally:
            go_on.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
        assert post(url, data).status_code == 200


def test_a_body_that_does_not_come_is_408_and_gives_its_place_back(classifier, photos):
    with served(classifier, patience=0.2, places=1) as url:
        with connected(url) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
        assert post(url, (photos / "red/000.png").read_bytes()).status_code == 200


def test_a_client_that_leaves_gives_its_place_back(classifier, photos, capfd):
    with served(classifier, places=1) as url:
        with connected(url) as gone:
            gone.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            wait_until(lambda: requests.get(f"{url}health", timeout=TIMEOUT).json()["under_way"] == 1)
        wait_until(lambda: requests.get(f"{url}health", timeout=TIMEOUT).json()["under_way"] == 0)
        assert post(url, (photos / "red/000.png").read_bytes()).status_code == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "query, files, detail",
    [
        ("?top=0", None, "top: "),
        ("?top=many", None, "top: "),
        ("?of=unicorn", None, "of: 'unicorn' is not one of the classes, which GET /model lists"),
        ("", {"note": (None, "text")}, "a form without a file; send files as `image`"),
    ],
)
def test_what_does_not_fit_is_422_in_one_line(url, described, query, files, detail):
    found = post(url, query=query, files=files)
    assert found.status_code == 422
    assert is_as_described(found, described)
    assert found.json()["detail"].startswith(detail)


def test_a_form_that_is_none_or_has_too_many_files_is_400(url, described):
    for found in (
        post(url, b"no form", headers={"Content-Type": "multipart/form-data"}),
        post(url, files=[("image", (f"{i}.png", b"x")) for i in range(17)]),
    ):
        assert found.status_code == 400
        assert is_as_described(found, described)


def test_the_description_is_valid_openapi_and_model_and_health_are_as_it_says(url, described, finished):
    validate(described)
    assert set(described["paths"]) == {"/predict", "/model", "/health"}
    found = requests.get(f"{url}model", timeout=TIMEOUT)
    assert is_as_described(found, described)
    told, result = found.json(), json.loads((finished / "result.json").read_text())
    assert (told["name"], told["classes"]) == (finished.name, list(tiny.CLASSES))
    counts = {k: result["test"][k] for k in ("correct", "seen", "interval95")}
    assert told["accuracy"] == {"images": "test", "without": [], **counts, "chose_epoch": False}
    untested = about(dataclasses.replace(load(finished), result=result | {"test": None}), Limits())
    assert (untested.accuracy.images, untested.accuracy.chose_epoch) == ("validation", True)
    assert is_as_described(requests.get(f"{url}health", timeout=TIMEOUT), described)


class Links(HTMLParser):
    """What a page loads or leads to, and whether it has code or style of its own, which the policy would block."""

    def __init__(self, page):
        super().__init__()
        self.found, self.inline = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.found += [given[name] for name in ("src", "href") if name in given]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("path", ["", "docs"])
def test_pages_load_only_what_is_served_here(url, path):
    found = requests.get(f"{url}{path}", timeout=TIMEOUT)
    links = Links(found.text)
    assert found.status_code == 200 and not links.inline and "static/page.css" in links.found
    for link in links.found:
        assert "//" not in link
        if not link.startswith("#"):
            assert requests.get(f"{url}{link}", timeout=TIMEOUT).status_code == 200
    for link in links.found:
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in found.text


def test_a_wrong_method_and_a_path_that_is_not_there_are_told_apart(url):
    wrong = requests.get(f"{url}predict", timeout=TIMEOUT)
    assert (wrong.status_code, wrong.headers["Allow"], wrong.json()) == (405, "POST", {"detail": "Method Not Allowed"})
    assert requests.get(f"{url}nothing", timeout=TIMEOUT).json() == {"detail": "Not Found"}


def test_every_answer_tells_browsers_to_be_careful(url):
    for found in (requests.get(url, timeout=TIMEOUT), requests.get(f"{url}nothing", timeout=TIMEOUT), post(url, b"x")):
        assert "default-src 'none'" in found.headers["Content-Security-Policy"]
        assert "unsafe" not in found.headers["Content-Security-Policy"]
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in found.headers


def test_a_name_that_leads_here_from_elsewhere_is_refused(url):
    for host, status in (("localhost", 200), ("127.0.0.1:8000", 200), ("evil.example", 400), ("127.0.0.1.evil", 400)):
        assert requests.get(f"{url}model", headers={"Host": host}, timeout=TIMEOUT).status_code == status


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[x"}, 403),
        ({"Origin": "http://localhost:9", "Host": "localhost:8"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost:8", "Host": "localhost:8", "Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
)
def test_another_sites_page_may_not_ask(url, photos, headers, status):
    assert post(url, (photos / "red/000.png").read_bytes(), headers=headers).status_code == status


@pytest.mark.parametrize(
    "number, host", [(signal.SIGINT, "127.0.0.1"), pytest.param(signal.SIGTERM, "0.0.0.0", marks=pytest.mark.slow)]
)
def test_the_command_says_where_it_answers_and_ends_by_a_signal_with_status_0(finished, photos, number, host):
    process = command(finished, "--port", "0", "--top", "2", "--host", host)
    try:
        line = process.stdout.readline()
        assert line.startswith(f"tljax: {finished} answers at http://{host}:"), process.stderr.read()
        url = line.split()[4].replace("0.0.0.0", "127.0.0.1")
        (answer,) = post(url, (photos / "red/000.png").read_bytes()).json()["answers"]
        assert len(answer["top"]) == 2
        other = requests.get(f"{url}model", headers={"Host": "there.example"}, timeout=TIMEOUT).status_code
        assert other == (400 if host == "127.0.0.1" else 200)
        process.send_signal(number)
        out, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, f"tljax: {number.name}: ended after 1 answer\n")
    warning = "tljax: warning: 0.0.0.0 is open to other machines"
    assert errors.startswith(warning) and errors.count("\n") == 1 if host == "0.0.0.0" else errors == ""


@pytest.mark.slow
def test_a_port_in_use_or_a_wrong_flag_is_one_line_and_status_2(finished, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in (
            (
                (finished, "--port", port),
                f"cannot listen at 127.0.0.1, port {port}: Address already in use",
            ),
            ((finished, "--port", "70000"), "--port=70000 is not a port"),
            ((finished, "--host", "nowhere.invalid"), "--host=nowhere.invalid is no address of this machine"),
            ((finished, "--max-mb", "0"), "--max-mb=0.0 is not a positive number"),
            ((tmp_path, "--port", "0"), "is not the folder of a finished run: it has no result.json"),
        ):
            process = command(*arguments)
            _, errors = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 2
            (line,) = errors.splitlines()
            assert line.startswith("tljax: ") and words in line


def test_without_the_extra_it_names_it(finished, tmp_path):
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('No module named fastapi', name='fastapi')\n")
    process = command(finished, "--port", "0", PYTHONPATH=str(tmp_path))
    _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (2, "tljax: serving needs fastapi: pip install -e '.[serve]'\n")


def test_it_listens_on_ipv6_too():
    try:
        with bound("::1", 0) as door:
            assert door.getsockname()[0] == "::1"
    except ValueError as error:
        pytest.skip(f"no IPv6 here: {error}")
