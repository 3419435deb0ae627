"""The page of an index in Chromium: its layout, and that mouse, keyboard and screen reader lead to the same."""

import threading
import time

import pytest

from otdml.server import launch
from otdml.server.application import application

pytestmark = pytest.mark.browser

DROP = """([bytes, name, kind]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
    const event = kind === "paste"
        ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
        : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
    document.body.dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def address(site):
    """A server on a port of its own."""
    import uvicorn

    with launch.listening(0) as listener:
        config = uvicorn.Config(application(site, "key"), log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield launch.address(listener, "key")
        server.should_exit = True
        thread.join()


def pictures(page) -> bool:
    """Whether every picture has been drawn."""
    page.wait_for_function("[...document.images].every(image => image.complete)")
    return page.evaluate("document.images.length > 0 && [...document.images].every(image => image.naturalWidth > 0)")


def test_the_pages_fit_and_can_be_read(window, address, assert_readable):
    window.goto(address)
    assert "key" not in window.url
    assert pictures(window)
    assert_readable(window)
    window.locator("a.card").first.click()
    window.wait_for_url("**/?like=*")
    assert pictures(window)
    assert_readable(window)


def test_a_file_is_chosen_and_its_neighbours_are_shown(window, address, kept_index, assert_readable):
    window.goto(address)
    window.get_by_label("Search by an image of your own").set_input_files(
        kept_index.with_name("photos") / "cat" / "cat 2.png"
    )
    window.wait_for_url("**/?query=*")
    assert window.get_by_role("heading", name="Nearest to cat 2.png").is_visible()
    assert pictures(window)
    assert_readable(window)
    window.go_back()
    assert window.get_by_role("heading", name="Images of the index").is_visible()


@pytest.fixture
def page(chromium, address):
    context = chromium.new_context()
    found = context.new_page()
    found.set_default_timeout(60_000)
    found.goto(address)
    yield found
    context.close()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_file_is_dropped_or_pasted_anywhere(page, content, kind):
    page.evaluate(DROP, [list(content), "mine.png", kind])
    page.wait_for_url("**/?query=*")
    assert page.get_by_role("heading", name="Nearest to mine.png").is_visible()


def test_what_is_no_image_is_said_aloud_and_the_page_stays(page):
    page.evaluate(DROP, [[1, 2, 3], "notes.txt", "drop"])
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "its format is not known" in alert.inner_text()
    assert not page.locator("#status").inner_text()


def test_a_file_that_is_too_large_is_not_sent(page):
    page.locator(".drop").evaluate("form => form.dataset.bytes = 2")
    page.on("request", lambda request: pytest.fail(request.url) if request.method == "POST" else None)
    page.evaluate(DROP, [[1, 2, 3], "large.png", "drop"])
    assert "large.png is larger than" in page.get_by_role("alert").inner_text()


def test_the_keyboard_leads_to_an_image_and_shows_where_it_is(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the images"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    focused = page.locator("a.card").first
    assert focused.evaluate("card => card === document.activeElement")
    assert focused.evaluate("card => getComputedStyle(card).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**/?like=*")


def test_a_screen_reader_is_told_rank_similarity_and_class(page):
    page.locator("a.card").first.click()
    page.wait_for_url("**/?like=*")
    images = page.get_by_role("list", name="Images, most similar first")
    assert images.get_by_role("listitem").count() == 6
    names = [link.inner_text() for link in images.get_by_role("link").all()]
    for name in names:
        assert "similarity" in name
        assert ("the same class" in name) != ("another class" in name)


def test_nothing_is_asked_of_another_machine(chromium, address, content):
    with chromium.new_context() as context:
        page, asked = context.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.evaluate(DROP, [list(content), "mine.png", "drop"])
        page.wait_for_url("**/?query=*")
        own = address.partition("?")[0]
        assert [url for url in asked if not url.startswith((own, "data:"))] == []
