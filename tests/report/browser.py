"""Opens a page in Chromium (Qt WebEngine, without a screen) and says what a reader would find.

    python tests/report/browser.py PAGE SCRIPT FOLDER WIDTH...

prints a JSON list: for each window width [CSS pixels] the value of the JavaScript file SCRIPT, and
writes its first window as FOLDER/WIDTH.png. A process of its own, since Qt owns the main thread.
"""

import json
import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QTWEBENGINE_DISABLE_SANDBOX"] = "1"  # which does not start for root, as in a container
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--disable-gpu --disable-background-networking"

from PySide6.QtCore import QEventLoop, QTimer, QUrl
from PySide6.QtGui import QImage
from PySide6.QtWebEngineCore import QWebEngineSettings
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

HEIGHT = 900
SETTLE_MS = 500
SECONDS = 120  # for one thing to happen, on a machine as busy as it may be


def wait_for(start) -> list:
    """What `start` hands to the callback that it is given."""
    loop = QEventLoop()
    answers: list = []

    def answered(*values):
        answers.extend(values)
        loop.quit()

    start(answered)
    QTimer.singleShot(1000 * SECONDS, loop.quit)
    if not answers:
        loop.exec()
    if not answers:
        sys.exit(f"the browser did not answer within {SECONDS} s")
    return answers


def settle() -> None:
    """Let layout and paint happen."""
    wait_for(lambda answered: QTimer.singleShot(SETTLE_MS, lambda: answered(True)))


def run_script(view: QWebEngineView, source: str):
    return wait_for(lambda answered: view.page().runJavaScript(source, 0, answered))[0]


def picture(view: QWebEngineView) -> QImage:
    """The window once it is painted: before, it has one colour."""
    for _ in range(SECONDS):
        settle()
        image = view.grab().toImage()
        columns = range(0, image.width(), 7)
        if len({image.pixel(x, y) for x in columns for y in range(0, HEIGHT, 7)}) > 1:
            return image
    sys.exit(f"the browser painted nothing within {SECONDS * SETTLE_MS / 1000:.0f} s")


def main(page: str, script: str, folder: str, *widths: str) -> None:
    application = QApplication([])
    found = []
    for width in map(int, widths):
        view = QWebEngineView()
        view.resize(width, HEIGHT)
        # as on a phone, where they take no width
        view.settings().setAttribute(QWebEngineSettings.WebAttribute.ShowScrollBars, False)
        view.show()

        def load(answered, view=view):
            view.loadFinished.connect(answered)
            view.load(QUrl.fromLocalFile(str(Path(page).resolve())))

        if not wait_for(load)[0]:
            sys.exit(f"{page} did not load")
        settle()
        found.append(json.loads(run_script(view, Path(script).read_text())))
        picture(view).save(f"{folder}/{width}.png")
        view.close()
    print(json.dumps(found), flush=True)
    del application
    os._exit(0)  # Qt's own clean-up of the profile crashes in some versions


if __name__ == "__main__":
    main(*sys.argv[1:])
