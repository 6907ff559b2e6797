"""The report in a real browser: Debian's chromium, headless."""

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from test_run import ROOT

import adasteer
import compare
import film_tta

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no browser: apt-get install chromium chromium-driver",
    ),
]
LOOKS = [(w, scheme) for w in (1280, 390) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--autoplay-policy=no-user-gesture-required"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, script, tmp_path):
    """The report on two runs of the demo clips and their baseline, opened from disk."""
    quick = ["--sampling-steps", 2, "--sampling=enhance_hf=false", "--save-adapter"]
    for module, name, flags in (
        (adasteer, "baseline", ["--steps", 0]),
        (adasteer, "adasteer", ["--steps", 4, "--stop-every", 2, "--trace-future", 2]),
        (film_tta, "film", ["--steps", 4, "--groups", 2]),
    ):
        assert script(module, *quick, *flags, "--out", tmp_path / name) == 0
    runs = [tmp_path / name for name in ("baseline", "adasteer", "film")]
    assert script(compare, *runs, "--out", tmp_path / "report", "--show", 2) == 0
    moved = tmp_path / "elsewhere"  # the folder stands on its own
    shutil.move(tmp_path / "report", moved)
    shutil.rmtree(tmp_path / "adasteer")
    browser.get(f"file://{moved}/index.html")
    return browser


def until(browser, condition, seconds=10):
    return WebDriverWait(browser, seconds, 0.1).until(condition)


def times(browser, player=0):
    return browser.execute_script(
        "return [...document.querySelectorAll('.player')[arguments[0]].querySelectorAll('video')]"
        ".map(v => v.currentTime)",
        player,
    )


def test_the_page_works(page, tmp_path):
    players = page.find_elements(By.CLASS_NAME, "player")
    videos = players[0].find_elements(By.TAG_NAME, "video")
    assert len(players) == 2 and len(videos) == 2 + 3 + 3
    until(page, lambda b: all(v.get_property("readyState") >= 2 for v in videos))
    fps = float(players[0].get_attribute("data-fps"))
    page.execute_script(
        "const s = document.querySelector('.player input'); s.value = 20;"
        "s.dispatchEvent(new Event('input'))"
    )
    assert times(page) == pytest.approx([20.5 / fps] * 8, abs=1e-3)
    assert "generated frame 8" in players[0].find_element(By.TAG_NAME, "output").text
    players[0].find_element(By.TAG_NAME, "button").click()
    until(page, lambda b: players[0].find_element(By.TAG_NAME, "button").text == "play")
    ended = times(page)
    assert min(ended) > 20.5 / fps and max(ended) - min(ended) < 2 / fps

    def gains():
        cells = page.find_elements(By.CSS_SELECTOR, "table.sortable tbody td:nth-child(2)")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    head = page.find_element(By.CSS_SELECTOR, "table.sortable th:nth-child(2) button")
    page.execute_script("arguments[0].click()", head)
    assert len(gains()) == 4 and gains() == sorted(gains(), reverse=True)
    page.execute_script("arguments[0].click()", head)
    assert gains() == sorted(gains())
    for link in page.find_elements(By.CSS_SELECTOR, "a[href^='#']"):
        target = link.get_attribute("href").partition("#")[2]
        assert page.execute_script("return !!document.getElementById(arguments[0])", target)
    text = page.find_element(By.TAG_NAME, "main").get_attribute("textContent")
    for words in ("held-out latents", "true future", "both better", "gain, future_loss, %"):
        assert words in text
    for width, scheme in LOOKS:
        look(page, width, scheme, tmp_path)
    wrong = [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not wrong, wrong


def look(browser, width, scheme, folder):
    """Nothing sticks out at this width; the whole page as a picture, to be looked at."""
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width, f"{wide} pixels at {width}"
    edges = browser.execute_script(
        "return [...document.querySelectorAll('.verdicts li, details[open] th')]"
        ".map(e => [e.tagName, e.textContent, e.getBoundingClientRect().right])"
    )
    first = ("method", "gain", "95 %", "improved")
    needed = [right for tag, text, right in edges if tag == "LI" or text in first]
    assert len(needed) == 2 + len(first) and max(needed) <= width
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": height})
    browser.save_screenshot(str(folder / f"{width}_{scheme}.png"))


def test_every_piece_of_the_page_is_ours():
    """No address of a network anywhere in what the page is made of."""
    for name in ("page.html", "page.css", "page.js"):
        assert "//" not in (ROOT / "report" / name).read_text().replace("\n// ", "\n")
