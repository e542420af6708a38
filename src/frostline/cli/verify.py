"""`frostline verify RUN`: proof that what was to stay frozen did."""

from __future__ import annotations

from frostline.cli import _options as options


def verify(run: options.Run, *, json: options.Json = False) -> None:
    """Prove from the run and its base that no frozen bit moved; exit status 3 if one did."""
    from frostline.cli._terminal import output, print_json, say
    from frostline.freezing import not_covered_text
    from frostline.runs import open_run

    opened = open_run(run)
    verdict = opened.verify()
    if json:
        print_json(
            {
                "verified": True,
                "tensors": verdict.tensors,
                "fingerprint": str(verdict.fingerprint),
                "checks": list(verdict.checks),
                "not_covered": list(verdict.not_covered),
            }
        )
        return
    page = output()
    for check in verdict.checks:
        say(page, f"ok  {check}")
    frozen = f"{verdict.tensors} frozen tensors, {verdict.fingerprint}"
    nothing = (
        "nothing stayed frozen in all phases" if opened.settings.plan else "nothing was frozen"
    )
    beside = not_covered_text(verdict.not_covered)
    say(page, f"Verified: {frozen if verdict.tensors else nothing}{beside}")
