"""The page at `/`, used in a real browser: against the real server, and against one that misbehaves."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Generator
from email.utils import formatdate
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from lct_deploy.bundle import open_bundle
from lct_deploy.manifest import Manifest
from lct_deploy.sample import load_sample
from server.cards import model_card
from server.page import page_router
from server.problems import problem_response
from tests.browser import INSTALL, REQUIRED, Page, open_chromium
from tests.serving import Server
from tests.test_cards import spec

MARKUP = '<img src="x" onerror="document.title=1"><b>boot</b>'
UNEXPECTED = "The answer is not what this page expects."
NASTY_NAMES = (
    "it's a boot.png",
    '$HOME `id` "x" \\ & ; | * ?.png',
    "--help.png",
    "@photo.png",
    "Stiefel – 靴.png",
)


# What is served


@pytest.fixture(scope="module")
def bundles(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo, and beside it one whose labels are markup and which crops its images."""
    second = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("bundles") / "second"))
    manifest = json.loads((second / "manifest.json").read_text())
    manifest |= {"name": "second", "labels": [*manifest["labels"][:9], MARKUP]}
    manifest["input"]["resize"] = 56
    (second / "manifest.json").write_text(json.dumps(manifest))
    return [demo_bundle, second]


@pytest.fixture(scope="module")
def url(bundles: list[Path]) -> Generator[str]:
    """Of `lct-deploy serve` in a process of its own."""
    command = [sys.executable, "-m", "lct_deploy", "serve", *map(str, bundles), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()
        assert server.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def http(url: str) -> Generator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


def encoded(index: int = 0, kind: str = "PNG", size: tuple[int, int] | None = None, **options: Any) -> bytes:
    image = Image.fromarray(load_sample().images[index])
    stream = io.BytesIO()
    (image.resize(size) if size else image).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    (tmp_path / "boot.png").write_bytes(encoded())
    return tmp_path / "boot.png"


Handler = Callable[[Request], Awaitable[Response]]


class Stub:
    """A server of the page whose API does what a test tells it; keeps what it was asked."""

    def __init__(self, manifest: Manifest) -> None:
        self.cards = [model_card(manifest, spec())]
        self.key = ""
        self.handlers: list[Handler] = []
        self.requests: list[Request] = []
        self.app = FastAPI()
        self.app.include_router(page_router())
        self.app.add_api_route("/v1/models", self._models, response_model=None)
        self.app.add_api_route("/v1/classify", self._classify, methods=["POST"], response_model=None)

    async def _models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse([card.model_dump() for card in self.cards])

    async def _classify(self, request: Request) -> Response:
        await request.body()
        self.requests.append(request)
        if self.handlers:
            return await self.handlers.pop(0)(request)
        return self._refused(request) or good("answered")

    def _refused(self, request: Request) -> Response | None:
        if not self.key or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return problem_response(401, "send an API key", {"WWW-Authenticate": "Bearer"})


def good(label: str = "answered", probability: float = 0.75) -> Response:
    predictions = [
        {"index": 0, "label": label, "probability": probability},
        {"index": 1, "label": "another", "probability": 1 - probability},
    ]
    timing = {"decode": 1.0, "queue": 0.0, "compute": 20.0, "total": 123.4}
    document = {"model": "demo", "version": "1", "predictions": [predictions], "timing_ms": timing}
    return JSONResponse(document)


def answering(response: Response) -> Handler:
    async def handler(_: Request) -> Response:
        return response

    return handler


@pytest.fixture(scope="module")
def stub_server(demo_bundle: Path) -> Generator[tuple[Stub, str]]:
    stub = Stub(open_bundle(demo_bundle).manifest)
    root = FastAPI()
    root.mount("/behind/a/proxy", stub.app)
    root.mount("/", stub.app)
    server = uvicorn.Server(uvicorn.Config(root, log_level="warning", lifespan="off", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield stub, f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)
    assert not thread.is_alive()


# The browser


@pytest.fixture(scope="module")
def chromium() -> Generator[Chrome]:
    with open_chromium() as driver:
        yield driver


@pytest.fixture
def tab(chromium: Chrome) -> Generator[Chrome]:
    """A new tab, with a session storage of its own."""
    first = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    chromium.get_log("browser")  # forget what a test that failed left behind
    yield chromium
    chromium.close()
    chromium.switch_to.window(first)


@pytest.fixture
def page(tab: Chrome, url: str) -> Generator[Page]:
    """The real server's page; in the end the browser must have had nothing to complain of."""
    page = Page(tab, f"{url}/")
    page.open()
    yield page
    assert page.complaints() == []


@pytest.fixture
def stub(stub_server: tuple[Stub, str], demo_bundle: Path) -> Generator[Stub]:
    stub, _ = stub_server
    yield stub
    stub.key = ""
    stub.handlers.clear()
    stub.requests.clear()


@pytest.fixture
def stubbed(tab: Chrome, stub: Stub, stub_server: tuple[Stub, str]) -> Generator[Page]:
    """The page of the stub, not yet opened."""
    page = Page(tab, f"{stub_server[1]}/")
    yield page
    assert page.complaints() == []


# The files


class References(HTMLParser):
    """What a document refers to, and what of it a strict policy would not run."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self.samples: dict[int, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.links += [value for name in ("src", "href") if (value := attributes.get(name))]
        self.inline += [name for name in attributes if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in attributes):
            self.inline.append(tag)
        if match := re.fullmatch(r"samples/(\d+)\.png", attributes.get("src") or ""):
            self.samples[int(match[1])] = attributes.get("alt") or ""


@pytest.fixture(scope="module")
def references(http: httpx.Client) -> References:
    parser = References()
    parser.feed(http.get("/").text)
    return parser


def test_everything_comes_from_this_server_and_nothing_is_inline(
    http: httpx.Client, references: References
) -> None:
    assert references.inline == []
    seen: set[str] = set()
    waiting = list(references.links)
    while waiting:
        link = waiting.pop()
        assert not re.match(r"[a-z]+:|/", link), link
        if link in seen:
            continue
        seen.add(link)
        answer = http.get(f"/{link}")
        assert answer.status_code == 200, link
        if link.endswith((".js", ".css")):
            assert "//" not in re.sub(r"(?m)//.*$" if link.endswith(".js") else "", "", answer.text)
        waiting += [f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', answer.text)]
    assert {"page/app.js", "page/api.js", "page/style.css", "page/icon.svg", "docs"} <= seen


def test_no_script_makes_markup_of_text() -> None:
    scripts = sorted((Path(__file__).parent.parent / "server" / "page").glob("*.js"))
    assert scripts
    dangerous = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser"
    assert [script.name for script in scripts if re.search(dangerous, script.read_text())] == []


@pytest.mark.parametrize(
    ("path", "media"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/samples/0.png", "image/png"),
    ],
)
def test_headers(http: httpx.Client, path: str, media: str) -> None:
    answer = http.get(path)
    assert answer.headers["content-type"] == media
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))


def test_what_the_browser_has_is_not_sent_again(http: httpx.Client) -> None:
    etag = http.get("/page/app.js").headers["etag"]
    assert etag != http.get("/page/api.js").headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        answer = http.get("/page/app.js", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        assert answer.headers["cache-control"] == "no-cache"
    assert http.get("/page/app.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/page/", "/page/router.py", "/page/..%2frouter.py", "/samples/3.png"])
def test_other_files_are_not_there(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_samples_are_one_of_each_class_and_say_which(http: httpx.Client, references: References) -> None:
    sample = load_sample()
    assert list(references.samples.values()) == list(sample.classes)
    for index, label in references.samples.items():
        assert sample.classes[int(sample.labels[index])] == label
        with Image.open(io.BytesIO(http.get(f"/samples/{index}.png").content)) as image:
            np.testing.assert_array_equal(np.asarray(image), sample.images[index])


def test_pages_stay_out_of_the_api_description(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert "/v1/models" in paths
    assert not [path for path in paths if path == "/" or path.startswith(("/page", "/samples"))]


# The cards


def test_a_card_says_what_the_manifest_says(http: httpx.Client, demo_bundle: Path) -> None:
    manifest = open_bundle(demo_bundle).manifest
    (report,) = manifest.parity
    cards = http.get("/v1/models").json()
    assert [card["name"] for card in cards] == ["demo", "second"]
    assert cards[0] == {
        "name": "demo",
        "version": "1",
        "arch": "lct_resnet20",
        "attention": {"kind": "lct", "groups": 4},
        "runtime": "onnxruntime",
        "precision": "fp32",
        "num_classes": 10,
        "input": {"height": 28, "width": 28, "resize": 28, "crop": 28, "interpolation": "bilinear"},
        "parity": {
            "reference": "PyTorch",
            "runtime": "onnxruntime",
            "max_abs_error": report.logits.max_abs_error,
            "top1_agreement": 1.0,
            "images": 544,
        },
        "fusion": {"blocks": 9, "fused": 9},
    }
    assert cards[1]["input"]["resize"] == 56


# An image's way


def percent(probability: float) -> str:
    if 0 < probability < 0.0001:
        return "< 0.01 %"
    if 0.9999 < probability < 1:
        return "> 99.99 %"
    return f"{100 * probability:.2f} %"


def api_answer(http: httpx.Client, body: bytes, media: str = "image/png", model: str = "demo") -> Any:
    answer = http.post(
        "/v1/classify", content=body, headers={"Content-Type": media}, params={"top_k": 5, "model": model}
    )
    return answer.json()["predictions"][0]


def as_shown(predictions: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(p["label"], percent(p["probability"])) for p in predictions]


def test_a_chosen_file_is_classified(page: Page, http: httpx.Client, boot: Path) -> None:
    assert page.driver.title == "Classify an image · lct-deploy"
    assert page.shows("placeholder")
    page.choose(boot)
    shown = page.predictions()
    assert shown == as_shown(api_answer(http, boot.read_bytes()))
    assert shown[0][0] == "Ankle boot"
    assert not page.shows("placeholder")
    assert page.text("status") == ", ".join(shown[0])
    assert page.text("caption") == "boot.png, 28 × 28 pixels"
    timing = page.by_id("timing").text
    for stage in ("decode", "queue", "compute", "other", "total", "round trip"):
        assert re.search(rf"{stage}\n\d+(\.\d+)? ms", timing), timing
    assert json.loads(page.text("json"))["predictions"][0][0]["label"] == "Ankle boot"


def test_bars_are_as_long_as_their_probability(page: Page, http: httpx.Client) -> None:
    page.choose_sample("Shirt")
    page.predictions()
    shares = page.run("""
        return [...document.querySelectorAll("#bars .fill")].map((fill) =>
          fill.getBoundingClientRect().width / fill.parentElement.getBoundingClientRect().width);
    """)
    expected = [p["probability"] for p in api_answer(http, encoded(4))]
    assert shares == pytest.approx(expected, abs=0.01)


def test_every_sample_is_classified(page: Page, http: httpx.Client, references: References) -> None:
    for index, label in references.samples.items():
        page.choose_sample(label)
        page.wait(lambda label=label: page.text("caption").startswith(f"Sample “{label}”"))
        assert page.predictions() == as_shown(api_answer(http, encoded(index)))


def test_the_same_file_may_be_chosen_again(page: Page, boot: Path) -> None:
    page.choose(boot)
    page.predictions()
    boot.write_bytes(encoded(2))
    page.choose(boot)
    page.wait(lambda: page.predictions()[0][0] == "Trouser")


def drop(page: Page, *files: Path, text: str = "") -> None:
    """Files or text, as a file manager or another program drops them."""
    zone = page.run("return document.getElementById('drop-zone').getBoundingClientRect().toJSON()")
    x, y = zone["x"] + zone["width"] / 2, zone["y"] + zone["height"] / 2
    items = [{"mimeType": "text/plain", "data": text}] if text else []
    data = {"items": items, "files": [str(file) for file in files], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        if kind == "drop":
            assert page.has_class("drop-zone", "over") is bool(files)
        page.devtools("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)


def test_a_dropped_file_is_classified(page: Page, boot: Path) -> None:
    drop(page, boot)
    assert page.predictions()[0][0] == "Ankle boot"
    assert not page.has_class("drop-zone", "over")


def test_what_is_no_image_file_cannot_be_dropped(page: Page, boot: Path) -> None:
    drop(page, boot, boot)
    assert "one image at a time" in page.failure()
    drop(page, text="https://example.org/boot.png")
    page.wait(lambda: "not a file" in page.failure())
    drop(page, boot.parent)
    page.wait(lambda: "cannot be read: is it a folder" in page.failure())
    assert page.driver.current_url == page.url
    assert not page.shows("answer")


def paste(page: Page) -> None:
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()


def test_a_pasted_image_is_classified(page: Page) -> None:
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.devtools("Browser.grantPermissions", permissions=permissions)
    page.run_async("""
        const blob = await (await fetch("samples/0.png")).blob();
        await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    """)
    paste(page)
    assert page.predictions()[0][0] == "Ankle boot"
    assert page.text("caption") == "image.png, 28 × 28 pixels"
    assert "save as image.png" in page.text("curl-note")
    page.run_async("await navigator.clipboard.writeText('words')")
    paste(page)
    assert "no image in the clipboard" in page.failure()


def test_the_network_s_square_is_framed_in_the_pixels_as_stored(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, which neither the server nor the page does
    (tmp_path / "wide.jpg").write_bytes(encoded(0, "JPEG", (400, 200), exif=exif))
    Select(page.by_id("model")).select_by_visible_text("second")
    page.choose(tmp_path / "wide.jpg")
    page.predictions()
    assert page.text("caption") == "wide.jpg, 400 × 200 pixels; framed: what the network sees"
    picture, crop = page.by_id("picture").rect, page.by_id("crop").rect
    assert picture["width"] == pytest.approx(2 * picture["height"], abs=1)
    # 28 of the 56 pixels that the short side becomes.
    assert crop["height"] == pytest.approx(picture["height"] / 2, abs=1)
    assert crop["width"] == pytest.approx(crop["height"], abs=1)
    assert crop["x"] + crop["width"] / 2 == pytest.approx(picture["x"] + picture["width"] / 2, abs=1)
    Select(page.by_id("model")).select_by_visible_text("demo")

    def framed_to_the_edge() -> bool:
        return abs(page.by_id("crop").rect["height"] - picture["height"]) <= 1

    page.wait(framed_to_the_edge)


# Labels, names and models


def test_markup_in_a_label_or_a_file_name_is_text(page: Page, tmp_path: Path) -> None:
    name = '<img src=x onerror="document.title=1">.png'
    (tmp_path / name).write_bytes(encoded())
    Select(page.by_id("model")).select_by_visible_text("second")
    page.choose(tmp_path / name)
    assert page.predictions()[0][0] == MARKUP
    assert page.text("status").startswith(MARKUP)
    assert page.text("caption").startswith(name)
    assert name in page.text("curl")
    assert page.run("return document.querySelectorAll('main img').length") == 11
    assert page.driver.title == "Classify an image · lct-deploy"


def test_the_policy_holds_in_this_browser(page: Page) -> None:
    """Else the absence of complaints would prove nothing."""
    blocked = page.run_async("""
        const seen = [];
        document.addEventListener("securitypolicyviolation", (e) => seen.push(e.effectiveDirective));
        const script = document.createElement("div");
        try { script.innerHTML = "<b>x</b>"; } catch { /* trusted types */ }
        const style = document.createElement("style");
        style.textContent = "* { color: red }";
        document.head.append(style);
        await fetch("https://example.org/").catch(() => {});
        await new Promise((done) => setTimeout(done, 100));
        return seen;
    """)
    assert {"require-trusted-types-for", "style-src-elem", "connect-src"} <= set(blocked)
    assert page.complaints() != []


def test_another_model_answers_at_once_and_has_its_own_card(page: Page, boot: Path) -> None:
    assert page.shows("model-choice")
    card = page.by_id("card").text
    for text in (
        "demo, version 1", "lct_resnet20", "LCT, 4 groups", "9 of 9 attention blocks",
        "28 × 28 pixels: short side to 28 (bilinear), centre 28 kept", "onnxruntime, fp32",
        "against PyTorch, the same best class on 100 % of 544 images",
    ):  # fmt: skip
        assert text in card
    assert "max |Δlogit| " in card
    page.choose(boot)
    assert page.predictions()[0][0] == "Ankle boot"
    Select(page.by_id("model")).select_by_visible_text("second")
    page.wait(lambda: page.predictions()[0][0] == MARKUP)
    assert "second, version 1" in page.by_id("card").text
    assert "model=second" in page.text("curl")


# Refusals


def too_many_pixels() -> bytes:
    """A PNG of a few bytes whose header says that it has 81 megapixels."""
    header = bytearray(encoded())
    header[16:24] = (9000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


@pytest.mark.parametrize(
    ("name", "body", "status", "detail"),
    [
        ("notes.txt", b"words", 415, "send image/jpeg, image/png, image/webp"),
        ("unnamed", encoded(), 415, "application/octet-stream"),
        ("words.png", b"words", 422, "not an image in a supported format; send JPEG, PNG or WebP"),
        ("cut.png", encoded()[:60], 422, "damaged image"),
        ("empty.png", b"", 422, "empty (0 bytes)"),
        ("bomb.png", too_many_pixels(), 413, "over the limit of 50 megapixels"),
    ],
)
def test_the_server_s_refusal_is_shown(
    page: Page, tmp_path: Path, name: str, body: bytes, status: int, detail: str
) -> None:
    page.choose_sample("Bag")
    page.predictions()
    (tmp_path / name).write_bytes(body)
    page.choose(tmp_path / name)
    shown = page.failure()
    assert shown.startswith(f"The server answered {status}")
    assert detail in shown
    assert page.by_id("error").get_attribute("role") == "alert"
    assert not page.shows("answer")
    assert not page.shows("retry")
    assert not page.shows("running")
    page.choose_sample("Trouser")
    assert page.predictions()[0][0] == "Trouser"
    assert page.text("error") == ""


def test_a_busy_server_is_asked_again_when_it_says(stubbed: Page, stub: Stub, boot: Path) -> None:
    stubbed.open()
    stub.handlers.append(answering(problem_response(503, "too busy", {"Retry-After": "1"})))
    stubbed.choose(boot)
    assert stubbed.failure() == "The server answered 503\ntoo busy"
    stubbed.wait(lambda: stubbed.text("retry") == "Try again")
    stubbed.by_id("retry").click()
    assert stubbed.predictions() == [("answered", "75.00 %"), ("another", "25.00 %")]
    assert len(stub.requests) == 2


def test_it_is_not_asked_before_and_may_say_a_date(stubbed: Page, stub: Stub, boot: Path) -> None:
    stubbed.open()
    when = formatdate(time.time() + 300, usegmt=True)
    stub.handlers.append(answering(problem_response(429, "over your quota", {"Retry-After": when})))
    stubbed.choose(boot)
    assert "over your quota" in stubbed.failure()
    assert re.fullmatch(r"Try again in (2\d\d|300) s", stubbed.text("retry"))
    stubbed.by_id("retry").click()
    assert stubbed.shows("error")
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (
            Response("<h1>Bad gateway</h1>", 502, media_type="text/html"),
            "The server answered 502 Bad Gateway",
        ),
        (Response("not JSON", media_type="text/plain"), UNEXPECTED),
        (JSONResponse({"predictions": "?"}), UNEXPECTED),
        (JSONResponse([]), UNEXPECTED),
        (JSONResponse({"predictions": [{"error": "damaged image"}]}), "damaged image"),
    ],
)
def test_answers_that_are_none(
    stubbed: Page, stub: Stub, boot: Path, response: Response, message: str
) -> None:
    stubbed.open()
    stub.handlers.append(answering(response))
    stubbed.choose(boot)
    assert message in stubbed.failure()
    assert not stubbed.shows("answer")
    warned = stubbed.complaints()  # what the reader cannot be told is in the console, and nothing else is
    assert len(warned) == (message == UNEXPECTED)


def test_a_server_that_cannot_be_reached(stubbed: Page, boot: Path) -> None:
    stubbed.open()
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    stubbed.devtools("Network.enable")
    stubbed.devtools("Network.emulateNetworkConditions", offline=True, **network)
    stubbed.choose(boot)
    assert "No answer came" in stubbed.failure()
    stubbed.devtools("Network.emulateNetworkConditions", offline=False, **network)
    stubbed.by_id("retry").click()
    assert stubbed.predictions()[0][0] == "answered"


# One request at a time


class Held:
    """A request that is not answered before its client has gone."""

    def __init__(self) -> None:
        self.arrived, self.given_up = threading.Event(), threading.Event()

    async def __call__(self, request: Request) -> Response:
        self.arrived.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.given_up.set()
        return good("too late")


def test_a_second_image_cancels_the_first(stubbed: Page, stub: Stub, boot: Path) -> None:
    stubbed.open()
    first = Held()
    stub.handlers += [first, answering(good("second"))]
    stubbed.choose(boot)
    assert first.arrived.wait(10)
    assert stubbed.text("status") == "Classifying boot.png…"
    assert stubbed.by_id("result").get_attribute("aria-busy") == "true"
    assert stubbed.shows("running")
    stubbed.choose_sample("Bag")
    assert stubbed.predictions()[0][0] == "second"
    assert first.given_up.wait(10)
    assert stubbed.text("error") == ""
    assert stubbed.text("caption").startswith("Sample “Bag”")


def test_a_request_can_be_cancelled_and_made_again(stubbed: Page, stub: Stub, boot: Path) -> None:
    stubbed.open()
    held = Held()
    stub.handlers.append(held)
    stubbed.choose(boot)
    assert held.arrived.wait(10)
    stubbed.by_id("cancel").click()
    assert held.given_up.wait(10)
    assert stubbed.text("status") == "Cancelled."
    assert stubbed.by_id("result").get_attribute("aria-busy") is None
    assert stubbed.driver.switch_to.active_element.get_attribute("id") == "retry"
    stubbed.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert stubbed.predictions()[0][0] == "answered"


# Keys


def test_a_server_with_keys_is_given_one(stubbed: Page, stub: Stub, boot: Path) -> None:
    stub.key = "right-key"
    stubbed.open()
    stubbed.wait(lambda: stubbed.shows("key-form"))
    assert stubbed.text("key-reason") == "send an API key"
    stubbed.wait(lambda: stubbed.driver.switch_to.active_element.get_attribute("id") == "key")
    stubbed.choose(boot)
    assert "send an API key" in stubbed.failure()
    stubbed.by_id("key").send_keys("two words", Keys.ENTER)
    assert "no spaces" in stubbed.text("key-reason")
    stubbed.by_id("key").clear()
    stubbed.by_id("key").send_keys("wrong-key", Keys.ENTER)
    stubbed.wait(lambda: stubbed.text("key-reason").startswith("The key was not accepted"))
    stubbed.wait(lambda: str(stubbed.by_id("key").get_property("value")) == "")
    stubbed.by_id("key").send_keys("right-key", Keys.ENTER)
    assert stubbed.predictions()[0][0] == "answered"
    stubbed.wait(lambda: not stubbed.shows("key-form"))
    stubbed.wait(lambda: "demo, version 1" in stubbed.by_id("card").text)
    assert stub.requests[-1].headers["authorization"] == "Bearer right-key"
    assert stub.requests[-1].query_params["model"] == "demo"
    assert '"Authorization: Bearer $LCT_API_KEY"' in stubbed.text("curl")
    assert "right-key" not in stubbed.text("curl")
    assert stubbed.run("return localStorage.length") == 0
    stubbed.open()  # the tab still has it
    stubbed.choose(boot)
    assert stubbed.predictions()[0][0] == "answered"
    stubbed.by_id("forget-key").click()
    assert stubbed.run("return sessionStorage.length") == 0
    assert "LCT_API_KEY" not in stubbed.text("curl")
    assert not stubbed.shows("key-in-use")


def test_a_real_server_with_keys_and_a_small_limit(
    tab: Chrome, demo_bundle: Path, boot: Path, tmp_path: Path
) -> None:
    """A body that is refused by its length, before it is read, is no failure of the network."""
    key = "a-key-of-the-group-infer"
    (tmp_path / "large.png").write_bytes(bytes(4 << 20))
    with Server(demo_bundle, infer_keys=key, max_body_bytes=100_000) as server:
        page = Page(tab, f"{server.url}/")
        page.open()
        page.wait(lambda: page.shows("key-form"))
        page.by_id("key").send_keys(key, Keys.ENTER)
        page.wait(lambda: "demo, version 1" in page.by_id("card").text)
        page.choose(boot)
        assert page.predictions()[0][0] == "Ankle boot"
        page.choose(tmp_path / "large.png")
        assert page.failure().startswith("The server answered 413")
        assert "over the limit of 100000 bytes" in page.failure()
        page.by_id("forget-key").click()
        page.wait(lambda: not page.shows("key-in-use"))


# The command


def type_command(command: str, directory: Path, **environment: str) -> Any:
    """What the command prints, as JSON, typed into a shell."""
    done = subprocess.run(
        ["sh", "-c", command.replace("curl ", "curl --silent --show-error --fail-with-body ")],
        cwd=directory,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_the_command_does_the_same_for_any_file_name(page: Page, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded())
    page.choose(tmp_path / name)
    shown = page.predictions()
    answer = type_command(page.text("curl"), tmp_path)
    assert as_shown(answer["predictions"][0]) == shown
    assert answer["model"] == "demo"


def test_the_command_for_a_sample_and_another_model(page: Page, tmp_path: Path) -> None:
    Select(page.by_id("model")).select_by_visible_text("second")
    page.choose_sample("Ankle boot")
    shown = page.predictions()
    answer = type_command(page.text("curl"), tmp_path)
    assert as_shown(answer["predictions"][0]) == shown
    assert answer["model"] == "second"


def assert_the_same_request(stub: Stub) -> None:
    """The last two: the page's and the command's."""
    sent, typed = stub.requests[-2:]
    assert sent.url == typed.url
    for header in ("authorization", "content-type", "content-length"):
        assert sent.headers.get(header) == typed.headers.get(header)


def test_the_command_takes_the_key_from_the_environment(stubbed: Page, stub: Stub, boot: Path) -> None:
    stub.key = "right-key"
    stubbed.open()
    stubbed.wait(lambda: stubbed.shows("key-form"))
    stubbed.by_id("key").send_keys("right-key", Keys.ENTER)
    stubbed.choose(boot)
    stubbed.predictions()
    answer = type_command(stubbed.text("curl"), boot.parent, LCT_API_KEY="right-key")
    assert answer["predictions"][0][0]["label"] == "answered"
    assert stub.requests[-1].headers["authorization"] == "Bearer right-key"
    assert_the_same_request(stub)


def test_the_command_takes_a_file_called_minus_for_a_file(stubbed: Page, stub: Stub, boot: Path) -> None:
    stubbed.open()
    stubbed.choose(boot.rename(boot.with_name("-")))
    stubbed.predictions()
    type_command(stubbed.text("curl"), boot.parent)
    assert_the_same_request(stub)


@pytest.mark.parametrize(
    "text", ["", "'", "''", "a'b'", "\\'", "$(id) `id` !x", "line\nbreak\ttab", "é — 靴"]
)
def test_quoting(page: Page, text: str) -> None:
    quoted = page.run_async("return (await import('/page/curl.js')).quote(args[0])", text)
    done = subprocess.run(["sh", "-c", f"printf %s {quoted}"], capture_output=True, text=True, check=True)
    assert done.stdout == text


def test_the_command_can_be_copied(page: Page) -> None:
    page.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.by_id("copy").click()
    page.wait(lambda: page.text("copied") == "Copied")
    assert page.run_async("return navigator.clipboard.readText()") == page.text("curl")


def test_behind_a_proxy_s_prefix(stubbed: Page, stub: Stub, boot: Path) -> None:
    stubbed.url += "behind/a/proxy/"
    stubbed.open()
    assert "demo, version 1" in stubbed.by_id("card").text
    stubbed.choose(boot)
    assert stubbed.predictions()[0][0] == "answered"
    assert f"{stubbed.url}v1/classify?" in stubbed.text("curl")
    type_command(stubbed.text("curl"), boot.parent)
    stubbed.choose_sample("Bag")
    stubbed.wait(lambda: "Bag" in stubbed.text("caption"))
    assert f"{stubbed.url}samples/18.png" in stubbed.text("curl")


# For everyone


def focused(page: Page) -> dict[str, Any]:
    return page.run("""
        const element = document.activeElement;
        const shown = element.matches("input[type=file]") ? element.nextElementSibling : element;
        const { outlineStyle, outlineWidth } = getComputedStyle(shown);
        const { width, height } = shown.getBoundingClientRect();
        return {
          name: element.id || element.dataset.sample || element.tagName,
          outline: outlineStyle === "none" ? 0 : parseFloat(outlineWidth), width, height,
        };
    """)


def press(page: Page, key: str) -> None:
    ActionChains(page.driver).send_keys(key).perform()


def tab_order(page: Page) -> list[dict[str, Any]]:
    """What the Tab key reaches, once round."""
    order: list[dict[str, Any]] = []
    for _ in range(40):
        press(page, Keys.TAB)
        stop = focused(page)
        if stop["name"] == "BODY" or (order and stop["name"] == order[0]["name"]):
            break
        order.append(stop)
    return order


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(page: Page) -> None:
    page.run("document.querySelector('[data-sample=\"18\"]').click()")
    page.predictions()
    stops = tab_order(page)
    samples = ["19", "2", "1", "13", "6", "8", "4", "9", "18", "0"]
    assert [stop["name"] for stop in stops] == ["A", "model", "file", *samples, "SUMMARY", "copy"]
    assert all(stop["outline"] >= 2 for stop in stops)
    # WCAG 2.2, 2.5.8; links in text are exempt.
    assert all(
        min(stop["width"], stop["height"]) >= 24 for stop in stops if stop["name"] not in ("A", "SUMMARY")
    )


def test_all_of_it_works_without_a_mouse(page: Page) -> None:
    page.run("document.querySelector('[data-sample=\"0\"]').focus()")
    press(page, Keys.ENTER)
    assert page.predictions()[0][0] == "Ankle boot"
    press(page, Keys.SHIFT + Keys.TAB)
    press(page, Keys.NULL)
    page.run("document.querySelector('[data-sample=\"2\"]').focus()")
    press(page, Keys.SPACE)
    page.wait(lambda: page.predictions()[0][0] == "Trouser")
    page.run("document.querySelector('summary').focus()")
    press(page, Keys.ENTER)
    assert page.shows("json")
    page.run("document.getElementById('model').focus()")
    press(page, Keys.ARROW_DOWN)
    page.wait(lambda: "second, version 1" in page.by_id("card").text)


def test_everything_has_a_name_and_a_place(page: Page) -> None:
    page.choose_sample("Bag")
    page.predictions()
    controls = page.driver.find_elements(By.CSS_SELECTOR, "button, input, select, summary, a, progress")
    assert [
        c.get_attribute("outerHTML") for c in controls if c.is_displayed() and not c.accessible_name
    ] == []
    named = {c.get_attribute("id"): c.accessible_name for c in controls}
    assert named["file"] == "Choose an image…"
    assert named["model"] == "Model"
    assert page.by_id("status").aria_role == "status"
    assert page.by_id("result").accessible_name == "Result"
    assert page.by_id("bars").accessible_name == "Most probable classes"
    outline = page.run("""
        return [document.documentElement.lang, document.querySelectorAll("h1").length,
          document.querySelectorAll("main").length, document.querySelectorAll("img:not([alt])").length,
          [...document.querySelectorAll("h1, h2, h3")]
            .filter((heading) => heading.checkVisibility()).map((heading) => heading.tagName)];
    """)
    assert outline[:4] == ["en", 1, 1, 0]
    assert outline[4] == ["H1", "H2", "H3", "H2", "H3", "H2", "H2"]
    ids = page.run("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


CONTRASTS = Path(__file__).with_name("contrasts.js").read_text()
LEAST = {"text": 4.5, "border": 3.0, "bar": 3.0}  # WCAG 2.2, 1.4.3 and 1.4.11


def low_contrasts(page: Page) -> list[Any]:
    measured = page.run(CONTRASTS)
    assert len(measured) > 10
    return [entry for entry in measured if entry[2] < LEAST[entry[0]]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Page, boot: Path, scheme: str) -> None:
    page.prefer(color_scheme=scheme)
    grounds = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", grounds)[0]) < 128) is (scheme == "dark")
    assert low_contrasts(page) == []
    page.choose(boot)
    page.predictions()
    page.run("document.querySelector('details').open = true")
    assert low_contrasts(page) == []
    drop(page, boot, boot)
    page.failure()
    assert low_contrasts(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_where_a_key_is_asked_for_and_a_server_is_busy(
    stubbed: Page, stub: Stub, boot: Path, scheme: str
) -> None:
    stubbed.prefer(color_scheme=scheme)
    stub.key = "right-key"
    stub.handlers.append(answering(problem_response(503, "too busy", {"Retry-After": "60"})))
    stubbed.open()
    stubbed.choose(boot)
    stubbed.failure()
    assert stubbed.shows("key-form")
    assert stubbed.shows("retry")
    assert low_contrasts(stubbed) == []


@pytest.mark.parametrize("width", [1280, 800, 360, 320])
def test_no_width_scrolls_sideways(page: Page, tmp_path: Path, width: int) -> None:
    def fits() -> bool:
        return page.run("return document.documentElement.scrollWidth <= innerWidth")

    page.resize(width, 740)
    assert fits()
    long = tmp_path / f"{'unbroken' * 25}.png"
    long.write_bytes(encoded())
    page.choose(long)
    page.predictions()
    page.run("document.querySelector('details').open = true")
    assert fits()
    long.write_bytes(b"words")
    page.choose(long)
    page.failure()
    assert fits()


def test_on_a_narrow_screen_the_result_comes_into_view(page: Page) -> None:
    page.resize(360, 640)
    page.choose_sample("Bag")
    page.predictions()
    page.wait(
        lambda: page.run("return document.getElementById('bars').getBoundingClientRect().top < innerHeight")
    )


def test_nothing_moves_where_motion_is_not_wanted(stubbed: Page, stub: Stub, boot: Path) -> None:
    stubbed.prefer(reduced_motion="reduce")
    stubbed.open()
    held = Held()
    stub.handlers.append(held)
    stubbed.choose(boot)
    assert held.arrived.wait(10)
    assert stubbed.shows("running")
    assert stubbed.run("return document.getAnimations().length") == 0
    assert stubbed.run("return document.querySelector('progress').checkVisibility()") is False
    assert stubbed.run("return getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    stubbed.by_id("cancel").click()


def test_without_a_browser_ci_fails_and_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=INSTALL), open_chromium():
        pass
    monkeypatch.delenv(REQUIRED)
    with pytest.raises(pytest.skip.Exception, match=INSTALL), open_chromium():
        pass
