"""`frostline verify RUN`: proof that what was to stay frozen did."""

from __future__ import annotations

from frostline.cli import _options as options


def verify(
    run: options.Run, *, weights: options.RunWeights = None, json: options.Json = False
) -> None:
    """Prove from the run and its base that no frozen bit moved; exit status 3 if one did."""
    from frostline.cli._terminal import show
    from frostline.errors import BrokenPromise, DriftError
    from frostline.freezing import not_covered_text
    from frostline.runs import open_run

    opened = open_run(run, weights=weights)
    try:
        verdict = opened.verify()
    except BrokenPromise as broken:
        if json:
            moved = list(map(str, broken.drifts)) if isinstance(broken, DriftError) else []
            show({"verified": False, "moved": moved, "why": str(broken)}, (), as_json=True)
        raise
    document = {
        "verified": True,
        "tensors": verdict.tensors,
        "fingerprint": str(verdict.fingerprint),
        "checks": list(verdict.checks),
        "not_covered": list(verdict.not_covered),
    }
    frozen = f"{verdict.tensors} frozen tensors, {verdict.fingerprint}"
    nothing = (
        "nothing stayed frozen in all phases" if opened.settings.plan else "nothing was frozen"
    )
    beside = not_covered_text(verdict.not_covered)
    last = f"Verified: {frozen if verdict.tensors else nothing}{beside}"
    show(document, ["\n".join([*(f"ok  {c}" for c in verdict.checks), last])], as_json=json)
