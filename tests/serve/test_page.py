"""The page in headless Chromium, as a person uses it."""

import base64
import os
import shutil

import pytest

from tests import tiny
from tests.data import bad_images
from tests.serve.served import served, wait_until
from tljax.inference import batch_predict
from tljax.inference.classifier import load
from tljax.report.console import make_console
from tljax.serve.desk import InferenceQueue
from tljax.train import runs

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("TLJAX_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
HOSTILE = "<img src=x onerror=alert(1)>"
# What a drop and a paste hand to a page, made of a file's bytes.
TRANSFER = """([name, data]) => {
  const found = new DataTransfer();
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  if (name) found.items.add(new File([bytes], name, { type: "image/png" }));
  else found.setData("text/plain", "no picture");
  return found;
}"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """One class is called what would be code on a page that takes names for HTML."""
    folder = tiny.make_folder(tmp_path_factory.mktemp("photos"))
    (folder / "green").rename(folder / HOSTILE)
    return folder


@pytest.fixture(scope="module")
def classifier(photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "tints"
    runs.run(tiny.make_config(photos, epochs=2), workdir, console=make_console(quiet=True))
    return load(workdir)


@pytest.fixture(scope="module")
def url(classifier):
    desk = InferenceQueue(classifier, places=16)
    desk.warm_up()
    with served(classifier, desk=desk, most_bytes=1_000_000) as url:
        yield url


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make .venv/browser")
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is absent")
        pytest.skip("Chromium is absent (TLJAX_CHROMIUM names one)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, url):
    """Opens the page at a size; afterwards nothing was complained of, and nothing was asked of another machine."""
    contexts, asked, complaints = [], [], []

    def open_page(size, **options):
        context = chromium.new_context(viewport=size, **options)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
        page.goto(url)
        page.get_by_text("right on").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    expected = "the server responded with a status of 415"  # Chromium's own line about a picture that is none
    assert [line for line in complaints if expected not in line] == []
    assert asked
    assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []


def hand(page, event, name, data=b""):
    """Drops or pastes a file."""
    transfer = page.evaluate_handle(TRANSFER, [name, base64.b64encode(data).decode()])
    kinds = {"drop": "new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true })",
             "paste": "new ClipboardEvent('paste', { clipboardData: dataTransfer, bubbles: true })"}  # fmt: skip
    page.evaluate(f"(dataTransfer) => document.getElementById('drop').dispatchEvent({kinds[event]})", transfer)


def answer_to(classifier, path):
    (answer,) = batch_predict.ask(classifier, batch_predict.find_pictures([str(path)], bytes))
    return answer.best


def rows(page):
    names = page.locator("#classes .class").all_inner_texts()
    return list(zip(names, page.locator("#classes .share").all_inner_texts(), strict=True))


def is_answered(page, name):
    page.locator("#status", has_text=f"{name}: ").filter(has_text="Answered in").wait_for()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_that_is_dropped_or_pasted_is_answered_as_predict_does(visit, classifier, photos, way):
    page, path = visit(WIDE), photos / "red/000.png"
    assert page.locator("#result").is_hidden()
    hand(page, way, "red.png", path.read_bytes())
    is_answered(page, "red.png")
    expected = answer_to(classifier, path)
    assert rows(page) == [(name, f"{share:.1%}") for name, share in expected]
    widths = page.locator("#classes .bar i").evaluate_all("all => all.map(i => i.style.width)")
    assert [float(one.rstrip("%")) for one in widths] == pytest.approx([100 * share for _, share in expected], abs=0.06)
    for name in ("picture", "heat"):
        assert page.locator(f"#{name}").evaluate("image => image.naturalWidth") == 32
    assert page.locator("#heat").evaluate("i => i.src") != page.locator("#picture").evaluate("i => i.src")


def test_a_class_that_is_chosen_is_explained_and_a_name_is_never_code(visit, photos):
    page = visit(WIDE)
    hand(page, "drop", f"{HOSTILE}.png", (photos / "red/001.png").read_bytes())
    is_answered(page, f"{HOSTILE}.png")
    before = page.locator("#heat").get_attribute("src")
    row = page.get_by_role("button", name=HOSTILE)
    row.click()
    page.locator("#classes [aria-pressed=true]", has_text=HOSTILE).wait_for()
    assert page.locator("#heat").get_attribute("src") != before
    assert HOSTILE in page.locator("#caption").inner_text()
    assert page.locator("main img").count() == 2


def test_the_keyboard_alone_is_enough(visit, classifier, photos):
    page, path = visit(WIDE), photos / "blue/002.png"
    # Playwright asks Chromium for choosers at the first listener and does not wait: Enter must not come before that.
    page.on("filechooser", lambda chooser: None)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "drop"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(path)
    is_answered(page, "002.png")
    expected = answer_to(classifier, path)
    for _ in range(2):  # the camera, the slider
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "fade"
    page.keyboard.press("Home")
    assert page.locator("#heat").evaluate("image => getComputedStyle(image).opacity") == "0"
    page.keyboard.press("End")
    assert page.locator("#heat").evaluate("image => getComputedStyle(image).opacity") == "1"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    second = expected[1][0]
    page.locator("#classes [aria-pressed=true]", has_text=second).wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"


def test_what_is_no_picture_has_its_reason_and_the_next_one_is_answered(visit, photos):
    page = visit(WIDE)
    wrong = page.get_by_role("alert")
    hand(page, "drop", "red.png", (photos / "red/000.png").read_bytes())
    is_answered(page, "red.png")
    for name in ("phone.jpg", "web page.jpg", "cut in IDAT.png", "empty.jpg"):
        kind = bad_images.kinds()[name]
        hand(page, "drop", name, kind.data)
        wrong.filter(has_text=f"{name}: ").wait_for()
        assert page.locator("#result").is_hidden()
    hand(page, "paste", None)
    wrong.filter(has_text="There is no picture file in what was pasted.").wait_for()
    hand(page, "drop", "large.png", bytes(1_200_000))
    wrong.filter(has_text="large.png has 1.2 MB; at most 1 MB can be sent").wait_for()
    hand(page, "drop", "red.png", (photos / "red/000.png").read_bytes())
    is_answered(page, "red.png")
    assert page.locator("#result").is_visible() and wrong.is_hidden()


def test_the_camera_takes_a_photo_and_is_let_go(visit):
    page = visit(WIDE)
    page.locator("#camera").click()
    wait_until(lambda: page.evaluate("document.getElementById('video').videoWidth"))
    track = page.evaluate_handle("document.getElementById('video').srcObject.getTracks()[0]")
    page.locator("#shoot").click()
    is_answered(page, "The photo")
    assert track.evaluate("track => track.readyState") == "ended"
    assert page.locator("#live").is_hidden()


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_at_a_phones_width_nothing_sticks_out_and_the_button_asks_its_camera(visit, photos, colors):
    page = visit(PHONE, has_touch=True, is_mobile=True, color_scheme=colors, reduced_motion="reduce")
    with page.expect_file_chooser() as chooser:
        page.locator("#camera").tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(photos / "red/000.png")
    is_answered(page, "000.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for one in page.locator("button:visible, #fade").all():
        box = one.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
        assert box["height"] >= 24  # WCAG 2.2's target size
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (colors == "light")


def test_the_description_is_a_page_without_errors(visit, url):
    page = visit(PHONE, is_mobile=True)
    page.get_by_role("link", name="Ask it from a program").click()
    page.get_by_role("heading", name="POST /predict").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
