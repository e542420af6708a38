"""The studio's pages: what each address shows or does. Knows no sockets."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import final
from urllib.parse import urlencode

from frostline.data import levels_of, ordered_map
from frostline.errors import ConfigError, DataError, FrostlineError
from frostline.pages.rendering import render
from frostline.pages.thumbnails import thumbnail
from frostline.records import in_words
from frostline.records.certainty import accuracy_interval
from frostline.reports import course_charts
from frostline.runs import FinishedRun, Prediction, open_run
from frostline.studio.choices import FORMATS, PARTS, asked_run, networks
from frostline.studio.places import (
    RUNS,
    FoundData,
    KnownRun,
    known_run,
    look_into,
    named_path,
    read_data,
    runs_below,
)
from frostline.studio.work import Said, Work

_TOP = 5  # classes named of a picture
_SUFFIX = re.compile(r"\.\w{1,8}", re.ASCII)
# What a page may do in the browser: run the script in it, and ask the studio. A report may run
# nothing, whoever wrote it.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_READ_ONLY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the browser.

    Attributes:
        goto: where the browser is sent instead, with status 303.
        policy: of its content, as the header has it.
    """

    body: str = ""
    status: int = 200
    goto: str = ""
    policy: str = _POLICY


_Maker = Callable[[Mapping[str, str]], Answer]


@final
class Studio:
    """Answers for one folder, in which runs are written to `runs/NAME`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = Work(folder)
        self._opened: tuple[str, int, FinishedRun] | None = None
        self._predicting = Lock()

    def show(self, page: str, query: Mapping[str, str]) -> Answer:
        """A page.

        Raises:
            FrostlineError: what it is about cannot be shown; says why.
        """
        pages: dict[str, _Maker] = {
            "": self._home,
            "folder": self._folder,
            "new": self._new,
            "run": self._run,
            "live": self._live,
            "report": self._report,
            "work": self._work,
        }
        return self._called(pages.get(page), query, f"there is no page {page}.")

    def do(self, action: str, form: Mapping[str, str]) -> Answer:
        """What a form asks for; the browser is sent on to where it can be seen.

        Raises:
            FrostlineError: it cannot be done; says why.
        """
        actions: dict[str, _Maker] = {
            "train": self._train,
            "resume": self._resume,
            "stop": self._stop,
            "estimate": self._estimate,
            "probe": self._probe,
            "verify": self._verify,
            "export": self._export,
        }
        return self._called(actions.get(action), form, f"there is nothing to do at {action}.")

    def predict(self, query: Mapping[str, str], picture: bytes) -> Answer:
        """What a run says of a picture, as a part of its page.

        Raises:
            FrostlineError: the picture cannot be read, or the run not be opened.
        """
        run = self._known(query)
        name = query.get("file", "").rpartition("/")[2] or "picture"
        kind = _SUFFIX.search(name[-9:])
        with tempfile.TemporaryDirectory(prefix="frostline-studio-") as folder:
            file = Path(folder, f"picture{kind[0] if kind else ''}")
            file.write_bytes(picture)
            seen, _ = thumbnail(file, run.settings.data.levels if run.settings else None)
            try:
                said = self._predicted(run, file)
            except FrostlineError as error:
                raise DataError(str(error).replace(str(file), name)) from error
        words = in_words(said.answer)
        return Answer(render("studio_said.html", file=name, picture=seen, said=said, words=words))

    def problem(self, message: str, *, status: int = 400) -> Answer:
        """A page that says what is wrong."""
        return Answer(self._page("studio_problem.html", message=message), status)

    def _called(self, make: _Maker | None, given: Mapping[str, str], unknown: str) -> Answer:
        return self.problem(unknown, status=404) if make is None else make(given)

    def _page(self, template: str, **values: object) -> str:
        if "said" not in values:
            said = self.work.said()
            values |= {"said": said, "why_ended": _why_ended(said)}
        return render(template, folder=self.folder, **values)

    def _home(self, _query: Mapping[str, str]) -> Answer:
        return Answer(self._page("studio_home.html", runs=runs_below(self.folder)))

    def _folder(self, query: Mapping[str, str]) -> Answer:
        path = named_path(query.get("path", ""), self.folder)
        place = look_into(path.parent if path.is_file() else path)
        # Where everything of a person lies is not looked through before they have asked for it.
        is_whole = path == Path.home() or path in Path.home().parents
        found, why_not = None, ""
        if not is_whole or "path" in query:
            found, why_not = self._data(path)
        shown = found.shown if found else ()
        levels = levels_of(file for file, _ in shown) if shown else None
        small = ordered_map(lambda one: thumbnail(one[0], levels), shown, ahead=len(shown))
        pictures = list(zip(small, (said for _, said in shown), strict=True))
        return Answer(
            self._page(
                "studio_folder.html",
                place=place,
                chosen=path,
                found=found,
                why_not=why_not,
                pictures=pictures,
            )
        )

    def _data(self, path: Path) -> tuple[FoundData | None, str]:
        try:
            return read_data(path), ""
        except FrostlineError as error:
            return None, str(error)

    def _new(self, query: Mapping[str, str]) -> Answer:
        if not query.get("data"):
            return _goto("folder")
        found = read_data(named_path(query["data"], self.folder))
        offered = networks(found.kind)
        return Answer(self._page("studio_new.html", found=found, networks=offered, parts=PARTS))

    def _train(self, form: Mapping[str, str]) -> Answer:
        asked = asked_run(form, self.folder)
        read_data(asked.data)  # what is wrong with it is said on this page
        self.work.start(asked.training, about=f"the run {asked.name}", run=asked.name)
        return _goto("run", name=asked.name)

    def _resume(self, form: Mapping[str, str]) -> Answer:
        run = self._known(form)
        words = ["train", "--resume", f"{RUNS}/{run.name}"]
        self.work.start(words, about=f"the run {run.name}", run=run.name)
        return _goto("run", name=run.name)

    def _stop(self, form: Mapping[str, str]) -> Answer:
        number, said = form.get("number", ""), self.work.said()
        if said is not None and number == str(said.number):
            self.work.stop(said.number)
        return _goto("run", name=form["name"]) if form.get("name") else _goto("work")

    def _probe(self, form: Mapping[str, str]) -> Answer:
        asked = asked_run(form, self.folder)
        self.work.start(asked.probe, about="the look at each depth")
        return _goto("work")

    def _estimate(self, form: Mapping[str, str]) -> Answer:
        asked = asked_run(form, self.folder)
        self.work.start(asked.estimate, about="the estimate")
        return _goto("work")

    def _verify(self, form: Mapping[str, str]) -> Answer:
        run = self._known(form)
        self.work.start(["verify", f"{RUNS}/{run.name}"], about=f"the proof of {run.name}")
        return _goto("work")

    def _export(self, form: Mapping[str, str]) -> Answer:
        run, kind = self._known(form), form.get("to", "")
        if kind not in FORMATS:
            raise ConfigError(f"asked for a file of kind {kind!r}. Choose one on the page.")
        words = ["export", f"{RUNS}/{run.name}", "--to", kind]
        self.work.start(words, about=f"the export of {run.name}")
        return _goto("work")

    def _work(self, query: Mapping[str, str]) -> Answer:
        page = "studio_output.html" if "part" in query else "studio_work.html"
        return Answer(self._page(page))

    def _run(self, query: Mapping[str, str]) -> Answer:
        return Answer(self._page("studio_run.html", **self._about(query.get("name", ""))))

    def _live(self, query: Mapping[str, str]) -> Answer:
        """The part of a run's page that changes while it goes on."""
        return Answer(self._page("studio_live.html", **self._about(query.get("name", ""))))

    def _about(self, name: str) -> dict[str, object]:
        """What there is to tell of a run, which may not have begun to write anything yet.

        Raises:
            ConfigError: there is no such run, and none was asked for here.
        """
        said = self.work.said()
        ours = said if said is not None and said.run == name else None
        run: KnownRun | None = None
        try:
            run = known_run(self.folder, name)
        except ConfigError:
            if ours is None:
                raise
        is_working = ours is not None and ours.status is None
        best = run.records.best if run else None
        metrics = dict(best.validation) if best else {}
        result = run.records.result if run else None
        samples = result.samples if result else 0
        return {
            "name": name,
            "run": run,
            "state": "going" if is_working else (run.state if run else "stopped"),
            "said": said,
            "ours": ours,
            "why_ended": _why_ended(ours),
            "best": best,
            "metrics": {n: value for n, value in metrics.items() if math.isfinite(value)},
            "samples": samples,
            "interval": accuracy_interval(metrics, samples),
            "charts": course_charts(run.records) if run else [],
            "formats": FORMATS if run and _is_exported(run) else {},
        }

    def _report(self, query: Mapping[str, str]) -> Answer:
        file = self._known(query).folder.report
        try:
            return Answer(file.read_text(encoding="utf-8"), policy=_READ_ONLY)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(
                f"{file} cannot be read: {reason}. It is written when a run ends."
            ) from error

    def _known(self, query: Mapping[str, str]) -> KnownRun:
        return known_run(self.folder, query.get("name", ""))

    def _predicted(self, run: KnownRun, file: Path) -> Prediction:
        """By the run, which stays open for the next picture as long as it is the same."""
        with self._predicting:
            stamp = run.folder.best.stat().st_mtime_ns if run.folder.best.exists() else 0
            if self._opened is None or self._opened[:2] != (run.name, stamp):
                self._opened = run.name, stamp, open_run(run.folder.root)
            return self._opened[2].predict([file], top=_TOP)[0]


def _is_exported(run: KnownRun) -> bool:
    """Whether it has ended, and is of a kind that can be exported: a classifier of pictures."""
    settings = run.settings
    is_one = settings is not None and settings.task is None and not settings.data.is_text
    return is_one and run.state == "done"


def _why_ended(said: Said | None) -> str:
    """What ended a command, where that is not what it was to do."""
    if said is None or not said.status:
        return ""
    if said.status == 3:
        return "✗ A promise was broken: read below."
    if said.is_stopped:
        return "Stopped."
    if said.status < 0:
        return "The system ended it, perhaps for want of memory."
    return "It did not work: read below."


def _goto(page: str, **query: str) -> Answer:
    return Answer(goto=f"{page}?{urlencode(query)}" if query else page)
