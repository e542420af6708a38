"""The studio's pages: what each address shows or does. Knows no sockets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import final
from urllib.parse import urlencode

from frostline.data import ordered_map
from frostline.errors import ConfigError, DataError, FrostlineError
from frostline.pages.rendering import render
from frostline.pages.thumbnails import thumbnail
from frostline.records import in_words
from frostline.records.certainty import accuracy_interval
from frostline.reports import course_charts
from frostline.runs import FinishedRun, Prediction, open_run
from frostline.studio.choices import FORMATS, PARTS, asked_run, free_name, networks
from frostline.studio.places import (
    RUNS,
    FoundData,
    KnownRun,
    known_run,
    look_into,
    read_data,
    runs_below,
)
from frostline.studio.work import Work

_TOP = 5  # classes named of a picture


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the browser.

    Attributes:
        goto: where the browser is sent instead.
    """

    body: str = ""
    status: int = 200
    goto: str = ""


@final
class Studio:
    """Answers for one folder, in which runs are written to `runs/NAME`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = Work(folder)
        self._opened: tuple[str, int, FinishedRun] | None = None
        self._predicting = Lock()

    def show(self, path: str, query: Mapping[str, str]) -> Answer:
        """A page.

        Raises:
            FrostlineError: what it is about cannot be shown; says why.
        """
        pages: dict[str, Callable[[Mapping[str, str]], Answer]] = {
            "/": self._home,
            "/folder": self._folder,
            "/new": self._new,
            "/run": self._run,
            "/live": self._live,
            "/report": self._report,
            "/work": self._work,
        }
        if path not in pages:
            return self.problem(f"there is no page {path}.", status=404)
        return pages[path](query)

    def do(self, path: str, form: Mapping[str, str]) -> Answer:
        """What a form asks for; the browser is sent on to where it can be seen.

        Raises:
            FrostlineError: it cannot be done; says why.
        """
        actions: dict[str, Callable[[Mapping[str, str]], Answer]] = {
            "/train": self._train,
            "/resume": self._resume,
            "/stop": self._stop,
            "/estimate": self._estimate,
            "/probe": self._probe,
            "/verify": self._verify,
            "/export": self._export,
        }
        if path not in actions:
            return self.problem(f"there is nothing to do at {path}.", status=404)
        return actions[path](form)

    def predict(self, query: Mapping[str, str], picture: bytes) -> Answer:
        """What a run says of a picture, as a part of its page.

        Raises:
            FrostlineError: the picture cannot be read, or the run not be opened.
        """
        run = self._known(query)
        name = Path(query.get("file", "")).name or "picture"
        with tempfile.TemporaryDirectory(prefix="frostline-studio-") as folder:
            file = Path(folder, f"picture{Path(name).suffix}")
            file.write_bytes(picture)
            seen, _ = thumbnail(file)
            try:
                said = self._predicted(run, file)
            except FrostlineError as error:
                raise DataError(str(error).replace(str(file), name)) from error
        return Answer(
            render(
                "studio_said.html", file=name, picture=seen, said=said, words=in_words(said.answer)
            )
        )

    def problem(self, message: str, *, status: int = 400) -> Answer:
        """A page that says what is wrong."""
        return Answer(self._page("studio_problem.html", message=message), status)

    def _page(self, template: str, **values: object) -> str:
        return render(template, folder=self.folder, said=self.work.said(), **values)

    def _home(self, _query: Mapping[str, str]) -> Answer:
        return Answer(self._page("studio_home.html", runs=runs_below(self.folder)))

    def _folder(self, query: Mapping[str, str]) -> Answer:
        path = Path(query.get("path") or self.folder).expanduser()
        is_table = path.is_file()
        place = look_into(path.parent if is_table else path)
        found, why_not = self._data(path)
        shown = found.shown if found else ()
        small = ordered_map(lambda one: thumbnail(one[0]), shown, ahead=len(shown))
        pictures = list(zip(small, (said for _, said in shown), strict=True))
        return Answer(
            self._page(
                "studio_folder.html",
                place=place,
                chosen=path.resolve(),
                found=found,
                why_not=why_not,
                pictures=pictures,
            )
        )

    def _data(self, path: Path) -> tuple[FoundData | None, str]:
        try:
            return read_data(path.resolve()), ""
        except FrostlineError as error:
            return None, str(error)

    def _new(self, query: Mapping[str, str]) -> Answer:
        path = Path(query.get("data", "")).expanduser()
        return Answer(
            self._page(
                "studio_new.html",
                found=read_data(path.resolve()),
                networks=networks(),
                parts=PARTS,
                name=free_name(self.folder, path.name, ""),
            )
        )

    def _train(self, form: Mapping[str, str]) -> Answer:
        asked = asked_run(form, self.folder)
        read_data(Path(form["data"]))  # what is wrong with it is said on this page
        self.work.start(asked.training, about=f"the run {asked.name}", run=asked.name)
        return self._goto("/run", name=asked.name)

    def _resume(self, form: Mapping[str, str]) -> Answer:
        run = self._known(form)
        words = ["train", "--resume", f"{RUNS}/{run.name}"]
        self.work.start(words, about=f"the run {run.name}", run=run.name)
        return self._goto("/run", name=run.name)

    def _stop(self, form: Mapping[str, str]) -> Answer:
        self.work.stop()
        if form.get("name"):
            return self._goto("/run", name=form["name"])
        return self._goto("/work")

    def _probe(self, form: Mapping[str, str]) -> Answer:
        asked = asked_run(form, self.folder)
        self.work.start(asked.probe, about="the look at each depth")
        return self._goto("/work")

    def _estimate(self, form: Mapping[str, str]) -> Answer:
        asked = asked_run(form, self.folder)
        self.work.start(asked.estimate, about="the estimate")
        return self._goto("/work")

    def _verify(self, form: Mapping[str, str]) -> Answer:
        run = self._known(form)
        self.work.start(["verify", f"{RUNS}/{run.name}"], about=f"the proof of {run.name}")
        return self._goto("/work")

    def _export(self, form: Mapping[str, str]) -> Answer:
        run, kind = self._known(form), form.get("to", "")
        if kind not in FORMATS:
            raise ConfigError(f"asked for a file of kind {kind!r}. Choose one on the page.")
        words = ["export", f"{RUNS}/{run.name}", "--to", kind]
        self.work.start(words, about=f"the export of {run.name}")
        return self._goto("/work")

    def _work(self, query: Mapping[str, str]) -> Answer:
        page = "studio_output.html" if "part" in query else "studio_work.html"
        return Answer(self._page(page))

    def _run(self, query: Mapping[str, str]) -> Answer:
        name = query.get("name", "")
        said = self.work.said()
        if said is not None and said.run == name and not self._is_there(name):
            return Answer(self._page("studio_starting.html", name=name))
        run = self._known(query)
        return Answer(self._page("studio_run.html", formats=FORMATS, **self._about(run)))

    def _live(self, query: Mapping[str, str]) -> Answer:
        """The part of a run's page that changes while it goes on."""
        if not self._is_there(query.get("name", "")):
            return Answer(self._page("studio_output.html"))
        return Answer(self._page("studio_course.html", **self._about(self._known(query))))

    def _about(self, run: KnownRun) -> dict[str, object]:
        best = run.records.best
        metrics = dict(best.validation) if best else {}
        result = run.records.result
        samples = result.samples if result else 0
        said = self.work.said()
        return {
            "run": run,
            "best": best,
            "metrics": metrics,
            "samples": samples,
            "interval": accuracy_interval(metrics, samples) if samples else None,
            "charts": course_charts(run.records),
            "ours": said is not None and said.run == run.name,
        }

    def _report(self, query: Mapping[str, str]) -> Answer:
        file = self._known(query).folder.report
        try:
            return Answer(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{file} cannot be read: {error.strerror}. It is written when a run ends."
            ) from error

    def _known(self, query: Mapping[str, str]) -> KnownRun:
        return known_run(self.folder, query.get("name", ""))

    def _is_there(self, name: str) -> bool:
        try:
            known_run(self.folder, name)
        except ConfigError:
            return False
        return True

    def _predicted(self, run: KnownRun, file: Path) -> Prediction:
        """By the run, which stays open for the next picture as long as it is the same."""
        with self._predicting:
            stamp = run.folder.best.stat().st_mtime_ns if run.folder.best.exists() else 0
            if self._opened is None or self._opened[:2] != (run.name, stamp):
                self._opened = run.name, stamp, open_run(run.folder.root)
            return self._opened[2].predict([file], top=_TOP)[0]

    def _goto(self, path: str, **query: str) -> Answer:
        return Answer(status=303, goto=f"{path}?{urlencode(query)}" if query else path)
