"""Pages for people: self-contained HTML, no request, no name that could run."""
