"""Pages: self-contained HTML that opens from disk and asks the network for nothing."""
