"""The page without a browser: what it shows, and every request that it refuses."""

import io
import os
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from otdml.server import application as addresses
from otdml.server import pictures
from otdml.server.pictures import MOST_BYTES


class Page(HTMLParser):
    """Links, pictures and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.cards = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        self.tags.append((tag, own))
        if tag == "a" and own.get("class", "").startswith("card"):
            self.cards.append({"href": own["href"], "kind": own["class"].split()[1:], "text": ""})

    def handle_data(self, data):
        if self.cards:
            self.cards[-1]["text"] += data


def test_the_page_begins_with_images_of_every_class(visitor):
    answer = visitor.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    cards = Page(answer.text).cards
    assert len(cards) == 6
    assert {name for card in cards for name in ("bird", "cat", "dog") if name in card["text"]} == {"bird", "cat", "dog"}
    assert "12 images, 3 classes" in answer.text


def test_an_image_is_followed_to_its_neighbours_with_similarity_and_class(visitor, site):
    number = [site.collection.name(i) for i in range(12)].index("dog 1.png")
    answer = visitor.get(f"/?like={number}")
    assert "<title>Nearest to dog 1.png · otdml</title>" in answer.text
    cards = Page(answer.text).cards
    assert [card["href"] for card in cards] == [f"/?like={found}" for found, _ in site.neighbors(number, 6)]
    for card, (found, similarity) in zip(cards, site.neighbors(number, 6), strict=True):
        same = site.collection.label(found) == "dog"
        assert card["kind"] == ["right" if same else "wrong"]
        assert f"similarity {similarity:.3f}, " in card["text"]
        assert ("the same class" if same else "another class") in card["text"]
        assert site.collection.name(found) in card["text"]
    assert re.search(r"The 6 most similar of 11 images, .* [0-3] of them are of its class, dog\.", answer.text)


def test_an_upload_is_followed_to_its_neighbours(visitor, upload):
    answer = upload()
    assert answer.status_code == 201
    page = visitor.get(answer.json()["page"])
    assert "Nearest to mine.png" in page.text
    assert "Their classes: " in page.text
    first = Page(page.text).cards[0]
    assert "similarity 1.000" in first["text"]
    assert "cat 2.png" in first["text"]
    assert first["kind"] == []
    source = next(own["src"] for tag, own in Page(page.text).tags if tag == "img")
    picture = visitor.get(source)
    assert picture.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(("k", "shown", "more"), [(2, 2, "k=4"), (11, 11, "k=22"), (12, 11, None), (192, 11, None)])
def test_more_are_offered_as_long_as_there_are_more(visitor, k, shown, more):
    text = visitor.get(f"/?like=3&k={k}").text
    page = Page(text)
    assert len(page.cards) == shown
    links = [own["href"] for tag, own in page.tags if tag == "a" and own.get("class") == "more"]
    assert links == ([] if more is None else [f"/?like=3&{more}"])


@pytest.mark.parametrize(
    "query",
    [
        "like=12",
        "like=-1",
        "like=1e3",
        "like=",
        "like=99999999999999999999",
        "like=٣",
        "like=../0",
        "k=0x1",
        "k=193",
        "query=x",
    ],
)
def test_an_address_of_nothing_is_answered_with_a_page_that_says_so(visitor, query):
    answer = visitor.get(f"/?{query}")
    assert answer.status_code == 404
    assert re.search(r'role="alert">(There is no |That image is not kept)', answer.text)
    assert len(Page(answer.text).cards) == 6


@pytest.mark.parametrize(
    "path",
    [
        *("/picture/12", "/picture/-1", "/picture/99999999999999999999", "/picture/x", "/picture/0/", "/picture/"),
        *("/picture/../../etc/passwd", "/picture/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/picture//etc/passwd"),
        *("/..%2f..%2fetc/passwd", "/static/page.js", "/page.js/../conftest.py", "/page.html.jinja", "/etc/passwd"),
        *("/query/x/picture", "/picture/0%00.png", "/items.json", "/index.faiss"),
    ],
)
def test_no_path_leads_out_of_the_index(visitor, path):
    answer = visitor.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", "/"), ("PUT", "/queries"), ("GET", "/queries"), ("DELETE", "/picture/0"), ("POST", "/picture/0")),
        *(("PUT", "/page.js"), ("PATCH", "/"), ("TRACE", "/")),
    ],
)
def test_other_methods_are_refused(visitor, method, path):
    assert visitor.request(method, path).status_code == 405


def test_pictures_are_drawn_anew_and_never_the_file_itself(visitor, site):
    answer = visitor.get("/picture/0")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (pictures.SIDE, pictures.SIDE)
    with open(site.collection.index.paths[0], "rb") as file:
        assert file.read() != answer.content


def test_images_that_moved_became_links_or_were_damaged_are_not_shown(index, photos):
    from starlette.testclient import TestClient

    from otdml.server.application import application
    from otdml.server.site import Site

    paths = [photos / name for name in ("cat/cat 0.png", "cat/cat 1.png", "cat/cat 2.png")]
    (photos.parent / "secret.png").write_bytes((photos / "dog" / "dog 0.png").read_bytes())
    paths[0].unlink()
    paths[1].unlink()
    paths[1].symlink_to(photos.parent / "secret.png")
    paths[2].write_bytes(b"no image")
    client = TestClient(application(Site(index), "key"), base_url="http://localhost:1")
    text = client.get("/?key=key").text
    assert "Not shown: there is no such file any more." in text
    assert "Not shown: a link has taken its place." in text
    assert text.count("changed since it was embedded") == 1
    assert [client.get(f"/picture/{number}").status_code for number in range(4, 8)] == [404, 404, 404, 200]
    for number in (4, 5, 6):
        answer = client.get(f"/picture/{number}").text
        assert answer == "This image has moved, or cannot be read."


def test_a_page_of_an_earlier_index_says_so(index):
    from starlette.testclient import TestClient

    from otdml.server.application import application
    from otdml.server.site import Site

    client = TestClient(application(Site(index), "key"), base_url="http://localhost:1")
    assert "was made again" not in client.get("/?key=key").text
    os.utime(index / "items.json", (1, 1))
    assert "The index was made again, or removed" in client.get("/").text


def test_an_index_without_its_network_offers_no_upload(index, network, content):
    from starlette.testclient import TestClient

    from otdml.dml import EmbeddingIndex
    from otdml.server.application import application
    from otdml.server.site import Site

    found = EmbeddingIndex.load(index)
    found.about = {}
    found.save(index)
    client = TestClient(application(Site(index), "key"), base_url="http://localhost:1")
    text = client.get("/?key=key").text
    assert "does not say which checkpoint made it. Start again with <code>--checkpoint</code>" in text
    assert 'type="file"' not in text
    answer = client.post("/queries", content=content, headers={"content-type": "application/octet-stream"})
    assert answer.status_code == 422


def test_an_upload_that_is_too_large_is_refused_by_its_announced_length(upload):
    answer = upload(b"x", content_length=str(MOST_BYTES + 1))
    assert answer.status_code == 413
    assert answer.json()["problem"] == "The file is larger than 32 MiB. Make the image smaller."


@pytest.mark.parametrize("announced", [None, "1", "many"])
def test_an_upload_that_is_too_large_is_refused_when_it_has_come_that_far(upload, monkeypatch, announced):
    monkeypatch.setattr(addresses, "MOST_BYTES", 1000)
    sent = []

    def chunks():
        for _ in range(50):
            sent.append(1)
            yield b"x" * 100

    answer = upload(chunks(), content_length=announced)
    assert answer.status_code == 413


def test_an_upload_that_does_not_arrive_is_given_up(upload, monkeypatch):
    import anyio

    async def never(request):
        await anyio.sleep(60)
        yield b""

    monkeypatch.setattr(addresses, "PATIENCE", 0.05)
    monkeypatch.setattr("starlette.requests.Request.stream", never)
    assert upload().status_code == 408


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "text/plain", "application/x-www-form-urlencoded", "image/png", None]
)
def test_what_forms_of_other_sites_can_send_is_refused(upload, kind):
    assert upload(content_type=kind).status_code == 415


def test_what_is_no_image_is_refused_with_the_reason(upload):
    answer = upload(b"no image")
    assert answer.status_code == 422
    assert answer.json()["problem"].startswith("Not searched: this cannot be read as an image")


def test_an_image_of_too_many_pixels_is_refused_with_the_reason(upload, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 1000)
    answer = upload()
    assert answer.status_code == 422
    assert "48 × 32 pixels" in answer.json()["problem"]


def test_a_damaged_image_is_refused_without_a_word_on_commands(upload, content):
    problem = upload(content[: len(content) // 2]).json()["problem"]
    assert problem.startswith("Not searched: ")
    assert "skip" not in problem


def test_names_are_text_and_no_markup(visitor, upload):
    page = visitor.get(upload(name="<script>alert(1)</script>\u202e.png").json()["page"]).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page


def test_nothing_comes_from_elsewhere_and_nothing_is_in_line(visitor):
    for address in ("/", "/?like=0"):
        text = visitor.get(address).text
        for tag, own in Page(text).tags:
            assert tag != "style"
            assert not [name for name in own if name == "style" or name.startswith("on")]
            for name in ("src", "href", "action", "srcset"):
                value = own.get(name) or "/"
                assert value.startswith(("/", "#", "data:,"))
                assert not value.startswith("//")
    for file in ("/page.css", "/page.js"):
        text = visitor.get(file).text
        assert "http" not in text
        assert "url(" not in text
        assert "@import" not in text
